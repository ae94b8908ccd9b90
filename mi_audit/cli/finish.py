"""What happens to a result: reports are written, a summary is printed, and the gate becomes the exit code."""

import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import typer

from mi_audit.cli.session import Session, current, emit, say, stdout
from mi_audit.core.errors import ConfigError, StorageError
from mi_audit.core.report import AuditReport, Comparison
from mi_audit.store.times import read_times

if TYPE_CHECKING:
    from rich.console import Console

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
        return _html(result, folder, images=images, names=names)
    return _text(result, folder) if kind == "text" else _PLAIN[kind](result)


def write(path: Path, text: str, *, private: bool = False) -> None:
    """Write a report where the user wants it; `private` for pages that show people. Raises StorageError."""
    from mi_audit.store.files import write_atomic

    write_atomic(path, text.encode(errors="replace"), private=private)


def write_all(result: Result, reports: Reported, folder: Path | None, *, images: bool = True) -> None:
    """Write what `--report` asked for; `-` is standard output. Raises StorageError."""
    for kind, path in reports:
        text = render(result, kind, folder, images=images)
        if path == STDOUT:
            emit(text)
        else:
            write(path, text)


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
    if session.json:
        from mi_audit.store.results import to_json

        emit(to_json(result))
    else:
        from mi_audit.report.terminal import show as show_terminal

        show_terminal(result, stdout(), read_timing(folder))


def verdict_code(result: Result, exit_zero: bool) -> int:
    """The exit code that the result deserves."""
    from mi_audit.audit.gate import exit_code, failed_jobs

    return exit_code(result.verdict, len(failed_jobs(result)), exit_zero)


def _html(result: Result, folder: Path | None, *, images: bool, names: bool) -> str:
    from mi_audit.report.html import html

    return html(result, folder, read_timing(folder), images, names)


def printed(show: Callable[["Console"], None]) -> str:
    """What `show` prints on 100 columns, without colours."""
    from rich.console import Console

    page = io.StringIO()
    show(Console(file=page, width=100, no_color=True, highlight=False))
    return page.getvalue()


def _text(result: Result, folder: Path | None) -> str:
    from mi_audit.report.terminal import show as show_terminal

    return printed(lambda console: show_terminal(result, console, read_timing(folder)))


def _markdown(result: Result) -> str:
    from mi_audit.report.markdown import markdown

    return markdown(result)


def _json(result: Result) -> str:
    from mi_audit.store.results import to_json

    return to_json(result)


def _junit(result: Result) -> str:
    from mi_audit.report.junit import junit

    return junit(result)


def _sarif(result: Result) -> str:
    from mi_audit.report.sarif import sarif

    return sarif(result)


def _github(result: Result) -> str:
    from mi_audit.report.github import github

    return github(result)


def _model_card(result: Result) -> str:
    from mi_audit.report.model_card import model_card

    return model_card(result)


_PLAIN: Mapping[Format, Callable[[Result], str]] = {
    "markdown": _markdown,
    "json": _json,
    "junit": _junit,
    "sarif": _sarif,
    "github": _github,
    "model-card": _model_card,
}


def read_timing(folder: Path | None) -> dict[str, Any] | None:
    """The clock time of a run; None, after a warning, when its file is damaged."""
    try:
        return None if folder is None else read_times(folder)
    except StorageError as error:
        say(str(error), "warning", "yellow")
        return None
