"""What sweeps and Fisher profiles have in common: a plot beside the page, and the formats that tell of them."""

from importlib import import_module
from pathlib import Path
from typing import Literal

from mi_audit.cli.finish import Reported, as_json, place, printed, show_as, told, write
from mi_audit.cli.session import Session, emit, say
from mi_audit.core.errors import ConfigError
from mi_audit.core.fisher import FisherReport
from mi_audit.core.sweep import Sweep

Charted = Sweep | FisherReport  # their `kind` names the module of their report and their files, too
FORMATS = ("html", "markdown", "text", "json")
CALLED = {"sweep": "a sweep", "fisher": "a Fisher profile"}


def check(wanted: str, kind: Literal["sweep", "fisher"]) -> None:
    """Raises ConfigError when the format `wanted` says nothing about that kind."""
    if wanted not in FORMATS:
        raise ConfigError(
            f"expected one of the formats {', '.join(FORMATS)} for {CALLED[kind]}, got {wanted}; choose one of them"
        )


def render_charted(found: Charted, wanted: str) -> str:
    """The text of a report, in one of `FORMATS`."""
    if wanted == "json":
        return as_json(found)
    return printed(found.kind, found) if wanted == "text" else told(found.kind, wanted, found)


def deliver_charted(session: Session, found: Charted, folder: Path, reports: Reported = ()) -> None:
    """Write plot, page and `reports`, print what was found, and say where it is. Raises StorageError."""
    from mi_audit.store.files import write_atomic
    from mi_audit.store.saved import FILES

    draw = import_module(f"mi_audit.report.{found.kind}").picture
    write(folder / "report.html", render_charted(found, "html"), private=True)
    for suffix in ("png", "svg"):
        write_atomic(folder / f"{found.kind}.{suffix}", draw(found, suffix))
    for wanted, path in reports:
        place(path, render_charted(found, wanted))
    show_as(session, found.kind, found)
    if session.verbosity >= 0:
        for label, name in (("report", "report.html"), ("plot", f"{found.kind}.png"), ("result", FILES[found.kind])):
            say(str(folder / name), label)


def report_charted(session: Session, found: Charted, wanted: str, output: Path | None) -> None:
    """`mi-audit report` on a sweep or a profile.

    Raises:
        ConfigError: The format says nothing about it.
        StorageError: It cannot be written.
    """
    check(wanted, found.kind)
    if output is not None:
        write(output, render_charted(found, wanted))
        if session.verbosity >= 0:
            say(str(output), "report")
    elif wanted == "text":
        show_as(session, found.kind, found)
    else:
        emit(render_charted(found, wanted))
