"""`config` and `cache`: what is set, and what is kept."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from mi_audit.cli.options import Given, Json, takes_settings
from mi_audit.cli.session import emit, emit_json, say, stdout
from mi_audit.core.errors import ConfigError

config = typer.Typer(no_args_is_help=True, help="Write, show and describe the settings.", rich_markup_mode="rich")
cache = typer.Typer(no_args_is_help=True, help="Look after what is slow to make: evaluators, priors, decoded data.")
Root = Annotated[Path | None, typer.Option("--cache-dir", metavar="PATH", help="Another cache than the user's.")]


@config.command("init")
def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File to write; - prints.")] = Path("mi-audit.toml"),
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented mi-audit.toml with every setting at its default."""
    from mi_audit.audit.settings import template

    if str(path) == "-":
        emit(template())
        return
    if path.exists() and not force:
        raise ConfigError(f"expected no file at {path}, got one; give --force to replace it")
    from mi_audit.store.files import write_atomic

    write_atomic(path, template().encode())
    say(str(path), "wrote")


@config.command("show")
@takes_settings("model", "data", "run", "defend", "gate", "baseline", "decision")
def show(given: Given, as_json: Json = False) -> None:
    """Print every setting that is in force, and where it came from."""
    rows = list(given.resolve().rows())
    if as_json:
        emit_json([{"setting": name, "value": value, "origin": origin} for name, value, origin in rows])
        return
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold dim", pad_edge=False)
    for column in ("setting", "value", "from"):
        table.add_column(column, no_wrap=column == "setting")
    for name, value, origin in rows:
        style = "dim" if origin == "default" else ""
        table.add_row(Text(name, style=style or "bold"), Text(_plain(value), style=style), Text(origin, style=style))
    stdout().print(table)


@config.command("schema")
def schema() -> None:
    """Print the JSON Schema of mi-audit.toml, for editors."""
    from mi_audit.audit.settings_tables import Settings

    emit_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()})


@cache.command("dir")
def directory(root: Root = None) -> None:
    """Print where the cache is."""
    emit(str(_open(root).root))


@cache.command("ls")
def entries(root: Root = None, as_json: Json = False) -> None:
    """List what is cached."""
    found = _open(root).entries()
    if as_json:
        emit_json(
            [{"kind": e.kind, "key": e.key, "path": e.path, "bytes": e.size, "used": _moment(e.used)} for e in found]
        )
        return
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold dim", pad_edge=False)
    table.add_column("kind", style="bold")
    table.add_column("key")
    table.add_column("size", justify="right")
    table.add_column("last used")
    for entry in found:
        table.add_row(entry.kind, entry.key[:16], f"{entry.size / 2**20:.1f} MiB", _moment(entry.used))
    stdout().print(table if found else Text("the cache is empty", style="dim"))


@cache.command("prune")
def prune(
    days: Annotated[float, typer.Option("--max-age", min=0, metavar="DAYS", help="Keep what was used since.")] = 30,
    root: Root = None,
) -> None:
    """Delete what nobody used for a while."""
    say(f"{_open(root).prune(days)} entries", "deleted")


@cache.command("clear")
def clear(
    kind: Annotated[str | None, typer.Argument(help="Only this kind, such as priors.")] = None,
    root: Root = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask.")] = False,
) -> None:
    """Delete everything that is cached, or everything of one kind."""
    if not yes:
        typer.confirm(f"Delete {kind or 'everything'} in {_open(root).root}?", abort=True, err=True)
    say(f"{_open(root).clear(kind)} entries", "deleted")


def _open(root: Path | None) -> Any:  # noqa: ANN401 - a Cache; naming the type here would import it at start
    from mi_audit.store.cache import Cache

    return Cache(root)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="minutes")


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(part.get("when") or part["id"] if isinstance(part, dict) else str(part) for part in value)
    return "" if value is None else str(value)
