"""`list`, `info`, `inspect`, `doctor`: what there is, and whether it works here."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mi_audit.cli.options import AllowPickle, Given, Json, takes_settings
from mi_audit.cli.session import current, emit, emit_json, say, stdout
from mi_audit.core.errors import ConfigError, NothingToAudit

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "attacks": ("name", "access", "prior", "cite", "summary"),
    "defenses": ("name", "kind", "summary"),
    "metrics": ("name", "unit", "summary"),
    "priors": ("name", "cite", "summary"),
}
TITLES = {"cite": "paper", "summary": "what it does"}
MANY = 12
MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}


def list_methods(
    kind: Annotated[str, typer.Argument(metavar="[attacks|defenses|metrics|priors]", help="What to list.")] = "attacks",
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", metavar="", help="Print every table as Markdown.")] = False,
) -> None:
    """List the attacks, defenses, metrics or priors that can be named.

    [bold]Examples[/bold]

      mi-audit list attacks
      mi-audit list defenses --json
    """
    if kind not in COLUMNS:
        raise ConfigError(
            f"expected one of {', '.join(COLUMNS)}, got {kind!r}; write for example `mi-audit list attacks`"
        )
    from mi_audit.audit import catalogue

    if as_markdown:
        emit(catalogue.markdown())
        return
    rows = catalogue.entries(next(known for known in catalogue.KINDS if known == kind))
    if as_json:
        emit_json(list(rows))
        return
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold dim", pad_edge=False)
    for column in COLUMNS[kind]:
        table.add_column(
            TITLES.get(column, column), style="bold cyan" if column == "name" else "", no_wrap=column != "summary"
        )
    for row in rows:
        table.add_row(*(Text(str(row[column] or "")) for column in COLUMNS[kind]))
    stdout().print(table)


def info(
    name: Annotated[str, typer.Argument(help="An attack, defense, metric or prior, such as ppa.")],
    as_json: Json = False,
) -> None:
    """Explain one method: threat model, paper, settings, departures from the published code.

    [bold]Examples[/bold]

      mi-audit info ppa
      mi-audit info gmi-gan --json
    """
    from mi_audit.audit.catalogue import describe

    entry = describe(name)
    if as_json:
        emit_json(entry)
        return
    console = stdout()
    console.print(Text.assemble((entry["name"], "bold cyan"), "  ", (entry["type"], "dim")))
    console.print(Text(entry["summary"]))
    console.print()
    console.print(_facts(entry))
    if entry["settings"]:
        console.print()
        console.print(_settings_table(entry))
    if entry.get("deviations"):
        console.print(Text("\nWhere it departs from the published code", style="bold"))
        for text in entry["deviations"]:
            console.print(Padding(Text(f"• {text}"), (0, 0, 0, 2)))


def _facts(entry: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    for key in (
        "access",
        "prior",
        "knowledge",
        "makes",
        "kind",
        "slots",
        "adaptive",
        "adaptive_options",
        "caution",
        "not with",
        "measures",
        "unit",
        "cost",
        "tags",
        "paper",
    ):
        value = entry.get(key)
        if value:
            table.add_row(key, Text(", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return table


def _settings_table(entry: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold dim", pad_edge=False)
    table.add_column("setting", style="bold", no_wrap=True)
    table.add_column("default", justify="right")
    if entry.get("quick"):
        table.add_column("quick", justify="right")
    table.add_column("meaning")
    for key, value in entry["settings"].items():
        quick = [str(entry["quick"].get(key, ""))] if entry.get("quick") else []
        table.add_row(*map(Text, (key, _plain(value), *quick, entry["help"].get(key, ""))))
    return table


def _plain(value: object) -> str:
    if not isinstance(value, list | tuple):
        return str(value)
    more = f", ... ({len(value)} in all)" if len(value) > MANY else ""
    return ", ".join(map(str, value[:MANY])) + more


@takes_settings("model")
def inspect(
    given: Given,
    as_json: Json = False,
    allow_pickle: AllowPickle = False,
    skips: Annotated[
        bool, typer.Option("--skips", help="Show the skip connections, and what rolss and ssf would set.")
    ] = False,
) -> None:
    """Show what would be loaded from a model, and where every fact about it came from.

    [bold]Examples[/bold]

      mi-audit inspect model.safetensors
      mi-audit inspect torchvision:resnet18 --skips
      mi-audit inspect weights.pt --arch timm:resnet18 --json
    """
    model = given.resolve().settings.model
    if model.ref is None:
        raise ConfigError("expected a model to inspect, got none; give MODEL, or ref under [model] in mi-audit.toml")
    from mi_audit.audit.inspect import SURGERY, inspect_model, inspect_skips

    found = inspect_model(model.ref, **model.model_dump(exclude={"ref"}), allow_pickle=allow_pickle)
    if skips:
        found["skips"] = inspect_skips(found)
    if as_json:
        emit_json(found)
    else:
        stdout().print(_skips_table(found["skips"], SURGERY) if skips else _inspected(found))
        for problem in found["problems"]:
            say(problem, "problem", "yellow")
    raise typer.Exit(NothingToAudit.exit_code if found["file"] and found["problems"] else 0)


def _inspected(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold dim", pad_edge=False)
    table.add_column("fact", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", style="dim")
    file = found["file"] or {}
    for key in ("path", "format", "sha256"):
        if key in file:
            table.add_row(key, Text(str(file[key])), "the file")
    if found["parameters"] is not None:
        table.add_row("parameters", f"{found['parameters']:,}", "the file")
    for key, fact in found["facts"].items():
        if fact["value"] not in (None, (), {}):
            table.add_row(key, Text(_plain(fact["value"])), Text(str(fact["origin"])))
    for other in found.get("alternatives", ()):
        table.add_row("or", Text(str(other)), "same tensors")
    return table


def _skips_table(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Table:
    """A row per skip connection; what a defense would change stands out."""
    changed = [f"{method} {sum(row[method] != 1 for row in rows)}" for method in methods]
    caption = Text(f"{len(rows)} skip connections; changed by {', '.join(changed)}")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold dim", pad_edge=False, caption=caption)
    numbers = ("stage", "positions", "now", *methods)
    for column in ("skip connection", "block", "kind", *numbers):
        table.add_column(
            column, justify="right" if column in numbers else "left", overflow="fold", no_wrap=column in numbers
        )
    for row in rows:
        facts = (row[key] for key in ("name", "block_class", "kind", "stage", "resolution"))
        factors = (
            Text(f"{row[key]:g}", style="bold yellow" if row[key] != 1 else "dim") for key in ("factor", *methods)
        )
        table.add_row(*(Text(str(fact)) for fact in facts), *factors)
    return table


def doctor(
    as_json: Json = False,
) -> None:
    """Check this machine: versions, devices, memory, disk and cache.

    [bold]Examples[/bold]

      mi-audit doctor
      mi-audit doctor --json
    """
    session = current()
    from mi_audit.audit.doctor import examine

    checks = examine()
    failed = any(check.status == "fail" for check in checks)
    if session.json or as_json:
        rows = [{"name": check.name, "status": check.status, "found": check.found} for check in checks]
        emit_json({"ok": not failed, "checks": rows})
    else:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for check in checks:
            mark, style = MARKS[check.status]
            table.add_row(Text(mark, style=style), Text(check.name, style="bold"), Text(check.found))
        stdout().print(table)
    raise typer.Exit(3 if failed else 0)
