"""What happens to a result: reports are written, a summary is printed, and the gate becomes the exit code."""

import io
import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import typer

from mi_audit.cli.session import Session, current, emit, say, stdout
from mi_audit.core.errors import ConfigError, StorageError
from mi_audit.core.report import AuditReport, Comparison
from mi_audit.store.times import read_times

if TYPE_CHECKING:
    from mi_audit.store.results import Saved

Format = Literal["html", "markdown", "json", "text", "junit", "sarif", "github", "model-card"]
Result = AuditReport | Comparison
Reported = tuple[tuple[Format, Path], ...]
SUMMARY = "GITHUB_STEP_SUMMARY"
STDOUT = Path("-")


def parse_reports(texts: Iterable[str] | None) -> Reported:
    """The pairs behind `--report FORMAT:FILE`; checked before a run, not after it.

    Raises:
        ConfigError: A text is not of that form, or the format is unknown.
    """
    pairs: list[tuple[Format, Path]] = []
    for text in texts or ():
        kind, colon, name = text.partition(":")
        if not colon or not name:
            raise ConfigError(
                f"expected --report FORMAT:FILE, got {text!r}; write for example --report html:report.html"
            )
        if name == str(STDOUT) and current().json:
            raise ConfigError(f"expected a file in --report {text} beside --json, got -; write to a file")
        pairs.append((known_format(kind), Path(name)))
    return tuple(pairs)


def known_format(kind: str) -> Format:
    """`kind`, when it is a format. Raises ConfigError."""
    for known in get_args(Format):
        if kind == known:
            return known
    raise ConfigError(f"expected a format of {', '.join(get_args(Format))}, got {kind!r}; choose one of them")


def claim(folder: Path) -> Path:
    """`folder`, once it is known that a run can be written there.

    Raises:
        ConfigError: It cannot be written, holds something else, or is in use.
    """
    from mi_audit.store.runs import RunFolder

    try:
        RunFolder(folder).close()
    except StorageError as error:
        raise ConfigError(f"{error}; or choose another --out") from error
    return folder


def render(result: Result, kind: Format, folder: Path | None, *, images: bool = True, names: bool = True) -> str:
    """The text of a report; pictures and, without `names`, only pseudonyms of the classes matter to HTML alone."""
    if kind == "html":
        return told("html", "html", result, folder, read_timing(folder), images, names)
    if kind == "text":
        return printed("terminal", result, read_timing(folder))
    return as_json(result) if kind == "json" else told(name := kind.replace("-", "_"), name, result)


def as_json(result: "Saved") -> str:
    """The canonical JSON of whatever a run folder holds. Raises StorageError."""
    from mi_audit.store.results import to_json

    return to_json(result)


def place(path: Path, text: str) -> None:
    """Write `text` where the user wants it; `-` is standard output. Raises StorageError."""
    if path == STDOUT:
        emit(text)
    else:
        write(path, text)


def write(path: Path, text: str, *, private: bool = False) -> None:
    """Write a report where the user wants it; `private` for pages that show people. Raises StorageError."""
    from mi_audit.store.files import write_atomic

    write_atomic(path, text.encode(errors="replace"), private=private)


def write_all(result: Result, reports: Reported, folder: Path | None, *, images: bool = True) -> None:
    """Write what `--report` asked for. Raises StorageError."""
    for kind, path in reports:
        place(path, render(result, kind, folder, images=images))


def summarise(result: Result) -> None:
    """Append the Markdown report to the step summary of a GitHub workflow, when there is one."""
    if summary := os.environ.get(SUMMARY):
        with Path(summary).open("a", encoding="utf-8") as stream:
            stream.write(render(result, "markdown", None))


def deliver(
    session: Session,
    result: Result,
    folder: Path,
    reports: Reported = (),
    *,
    exit_zero: bool = False,
    images: bool = True,
) -> None:
    """Write the reports of a finished run, print it, and leave with the exit code of its gate."""
    page = folder / "report.html"
    write(page, render(result, "html", folder, images=images), private=True)
    write_all(result, reports, folder, images=images)
    summarise(result)
    show(session, result, folder)
    if session.verbosity >= 0:
        say(str(page), "report")
        say(str(folder / "result.json"), "result")
    raise typer.Exit(verdict_code(result, exit_zero))


def show(session: Session, result: Result, folder: Path | None = None) -> None:
    """The result on standard output: one JSON document, or a summary for people."""
    show_as(session, "terminal", result, read_timing(folder))


def show_as(session: Session, module: str, result: "Saved", *more: object) -> None:
    """One JSON document, or what `mi_audit.report.<module>` shows of `result`, on standard output."""
    if session.json:
        emit(as_json(result))
    else:
        import_module(f"mi_audit.report.{module}").show(result, stdout(), *more)


def verdict_code(result: Result, exit_zero: bool) -> int:
    """The exit code that the result deserves."""
    from mi_audit.audit.gate import exit_code, failed_jobs

    return exit_code(result.verdict, len(failed_jobs(result)), exit_zero)


def told(module: str, function: str, *about: object) -> str:
    """What `function` of `mi_audit.report.<module>` makes of `about`; imported now, as its libraries take a while."""
    text: str = getattr(import_module(f"mi_audit.report.{module}"), function)(*about)
    return text


def printed(module: str, result: "Saved", *more: object) -> str:
    """What `mi_audit.report.<module>` shows of `result` on 100 columns, without colours."""
    from rich.console import Console

    page = io.StringIO()
    console = Console(file=page, width=100, no_color=True, highlight=False)
    import_module(f"mi_audit.report.{module}").show(result, console, *more)
    return page.getvalue()


def read_timing(folder: Path | None) -> dict[str, Any] | None:
    """The clock time of a run; None, after a warning, when its file is damaged."""
    try:
        return None if folder is None else read_times(folder)
    except StorageError as error:
        say(str(error), "warning", "yellow")
        return None
