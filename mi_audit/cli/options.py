"""Options of the command line, made from the tables of settings so that there is one list of them."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.markup import escape

from mi_audit.audit.settings import Resolved, resolve
from mi_audit.audit.settings_sources import Key
from mi_audit.audit.settings_tables import describe, flag_of, kind_of, leaves

PANELS = {
    "model": "Model", "data": "Data", "run": "Attack", "defend": "Defense",
    "gate": "Gate", "baseline": "Gate", "decision": "Gate",
}  # fmt: skip
MACHINE = (
    "device", "devices", "precision", "batch_size", "compile", "deterministic",
    "chunk", "max_queries", "images", "out", "cache",
)  # fmt: skip
SHORT: Mapping[Key, tuple[str, ...]] = {("run", "out"): ("-o",)}
OUTPUT = "Output"

Json = Annotated[
    bool, typer.Option("--json", metavar="", help="Print one JSON document on standard output.", rich_help_panel=OUTPUT)
]
ExitZero = Annotated[
    bool,
    typer.Option(
        "--exit-zero",
        metavar="",
        help="Exit 0 instead of 1 (gate failed) and 5 (inconclusive).",
        rich_help_panel=OUTPUT,
    ),
]
Reports = Annotated[
    list[str] | None,
    typer.Option(
        "--report",
        metavar="FORMAT:FILE",
        help="Write a report: html, markdown, json, text, junit, sarif, github or model-card; may be repeated.",
        rich_help_panel=OUTPUT,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", "-n", metavar="", help="Print the plan and a time estimate; run nothing.", rich_help_panel=OUTPUT
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", metavar="", help="Run finished jobs of an earlier run again.", rich_help_panel="Machine"),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        metavar="",
        help="Load formats that can run code (.pkl, TorchScript, .pt2), in a child process.",
        rich_help_panel="Model",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="Read settings from this TOML file, too.", rich_help_panel="Settings"
    ),
]
NoConfig = Annotated[
    bool,
    typer.Option(
        "--no-config", metavar="", help="Ignore mi-audit.toml and pyproject.toml.", rich_help_panel="Settings"
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="TABLE.KEY=VALUE",
        help="Any setting, such as attacks.gmi.steps=300; may be repeated.",
        rich_help_panel="Settings",
    ),
]


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says about settings."""

    flags: Mapping[Key, object]
    assignments: tuple[str, ...]
    config: Path | None
    discover: bool

    def resolve(self) -> Resolved:
        """The settings of all layers together."""
        return resolve(self.flags, self.assignments, config=self.config, discover=self.discover)


def takes_settings(*tables: str, only: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every setting of `tables`, or `only` these keys, and the outcome as `given`."""
    keys = [key for key in leaves() if key[0] in tables and (not only or key[-1] in only)]
    names = {flag_of(key).strip("-").replace("-", "_").lower(): key for key in keys}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> None:  # noqa: ANN401
            flags = {key: _unwrapped(values.pop(name)) for name, key in names.items()}
            chosen = values.pop("set_", None) or ()
            given = Given(flags, tuple(chosen), values.pop("config"), not values.pop("no_config"))
            command(given=given, **values)

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "given"]
        made = [_parameter(name, key) for name, key in names.items()]
        extra = [
            _keyword("config", Config, None),
            _keyword("no_config", NoConfig, False),
            _keyword("set_", Assignments, None),
        ]
        everything = sorted([*made, *own, *extra], key=lambda p: _place(p.annotation))
        wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in everything]
        )
        return wrapper

    return decorate


ORDER = ("", "Model", "Data", "Attack", "Defense", "Gate", OUTPUT, "Machine", "Settings")


def _place(annotation: object) -> int:
    info = next((part for part in get_args(annotation) if hasattr(part, "rich_help_panel")), None)
    panel = getattr(info, "rich_help_panel", None) or ""
    return ORDER.index(panel) if panel in ORDER else 0


def _keyword(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(name: str, key: Key) -> inspect.Parameter:
    flag, default, wanted = flag_of(key), leaves()[key], kind_of(key)
    help = escape(_sentence(describe(key))) + (
        f" [dim]\\[{_shown(default)}][/dim]" if default not in (None, (), False) else ""
    )
    if not flag.startswith("--"):
        return _keyword(name, Annotated[str | None, typer.Argument(metavar=flag, help=help, show_default=False)], None)
    panel = "Machine" if key[0] == "run" and key[-1] in MACHINE else PANELS[key[0]]
    spellings = (flag, *SHORT.get(key, ()))
    if wanted is bool:
        option = typer.Option(
            f"{flag}/{flag.replace('--', '--no-', 1)}", metavar="", help=help, show_default=False, rich_help_panel=panel
        )
        return _keyword(name, Annotated[bool | None, option], None)
    option = typer.Option(
        *spellings,
        metavar=_metavar(key, wanted),
        help=help + (" May be repeated." if key == ("gate",) else ""),
        show_default=False,
        rich_help_panel=panel,
        autocompletion=_offering(wanted) if get_origin(wanted) is Literal else None,
    )
    kind = list[str] | None if key == ("gate",) else Path | None if wanted is Path else str | None
    return _keyword(name, Annotated[kind, option], None)


def _offering(wanted: object) -> Callable[[], list[str]]:
    def offer() -> list[str]:
        return _choices(wanted)

    return offer


def _choices(wanted: object) -> list[str]:
    return [str(choice) for choice in get_args(wanted)]


def _metavar(key: Key, wanted: object) -> str:
    if get_origin(wanted) is Literal:
        return "|".join(_choices(wanted))
    if key == ("gate",):
        return "EXPR"
    return {Path: "PATH", int: "N", float: "X", tuple: "LIST"}.get(wanted if isinstance(wanted, type) else str, "TEXT")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _shown(default: object) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _unwrapped(value: object) -> object:
    """Options that may be repeated and were not given come as an empty list."""
    return None if value == [] else value
