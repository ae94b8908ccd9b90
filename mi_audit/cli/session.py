"""What one invocation of the program carries around, and the boundary where errors become one line and an exit code."""

import errno
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType

import typer
from rich.console import Console
from rich.text import Text

from mi_audit.core.errors import AuditError, ConfigError

INTERRUPTED, CLOSED_PIPE, BROKEN = 130, 141, 4
LEVELS = {-1: logging.ERROR, 0: logging.ERROR, 1: logging.INFO}


@dataclass
class Session:
    """The global options, and where the run is kept once that is known.

    Attributes:
        verbosity: -1 quiet, 0 normal, 1 with tracebacks and messages of the libraries.
        progress: Show bars.
        log_file: Where a full log is appended.
        json: Standard output carries one JSON document.
        run: The run folder, for the resume line.
    """

    verbosity: int = 0
    progress: bool = True
    log_file: Path | None = None
    json: bool = False
    run: Path | None = None

    def log(self, text: str) -> None:
        """Append a line with the time to the log file, if there is one; one that cannot be written is given up."""
        if self.log_file is not None:
            try:
                with self.log_file.open("a", encoding="utf-8") as stream:
                    stream.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n")
            except OSError as error:
                file, self.log_file = self.log_file, None
                say(f"nothing more is written to the log file {file}: {error.strerror}", "warning", "yellow")

    def start_logging(self) -> None:
        """Silence what libraries say, unless it was asked for, and put the command line into the log file.

        Raises:
            ConfigError: The log file cannot be opened.
        """
        logging.getLogger().setLevel(LEVELS.get(self.verbosity, logging.DEBUG))
        if self.verbosity > 0:
            logging.basicConfig(format="%(name)s: %(message)s")
        else:
            warnings.simplefilter("ignore")
        if self.log_file is not None:
            _check_log(self.log_file)
        self.log("mi-audit " + " ".join(sys.argv[1:]))


_CURRENT: ContextVar[Session] = ContextVar("session")


def begin(session: Session) -> None:
    """Make `session` the one of the commands that follow."""
    _CURRENT.set(session)


def current() -> Session:
    """The session of the running command."""
    return _CURRENT.get()


def stdout() -> Console:
    """Standard output: results."""
    return Console(highlight=False)


def stderr() -> Console:
    """Standard error: everything that is no result."""
    return Console(stderr=True, highlight=False)


def emit(text: str) -> None:
    """Write `text` to standard output as it is, and see now whether somebody still reads it."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def emit_json(value: object) -> None:
    """The one JSON document of a command."""
    emit(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def say(text: str, label: str = "", style: str = "") -> None:
    """One line on standard error, never wrapped, so that it can be searched for."""
    stderr().print(Text.assemble((f"{label}: " if label else "", style), text), soft_wrap=True)


class Boundary:
    """Turns everything that leaves a command into one line on standard error and a documented exit code."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, _terminate) if _in_main_thread() else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if error is None or isinstance(error, typer.Exit | typer.Abort | SystemExit):
            return
        if isinstance(error, BrokenPipeError):
            _forget_stdout()
            raise typer.Exit(CLOSED_PIPE) from None
        code = self._report(error)
        if code is not None:
            raise typer.Exit(code) from None

    def _report(self, error: BaseException) -> int | None:
        """Print `error` and return its exit code; None leaves a usage error to Typer, which shows the usage too."""
        lines = "".join(traceback.format_exception(error))
        if isinstance(error, KeyboardInterrupt):
            return self._interrupted(lines)
        if isinstance(error, AuditError):
            code, text = error.exit_code, str(error)
        elif hasattr(error, "format_message"):  # Typer's own errors in the command line
            if not self.session.json:
                return None
            code, text = 2, error.format_message()
        else:
            code, text = BROKEN, _bug(error)
        self.session.log(lines)
        if self.session.verbosity > 0:
            stderr().print(Text(lines.rstrip(), style="dim"))
        if self.session.json:
            emit_json({"error": {"kind": type(error).__name__, "message": text}, "exit_code": code})
        say(" ".join(text.split()), "error", "bold red")
        return code

    def _interrupted(self, lines: str) -> int:
        self.session.log(lines)
        if self.session.json:
            resume = str(self.session.run) if self.session.run else None
            emit_json(
                {"error": {"kind": "Interrupted", "message": "interrupted", "resume": resume}, "exit_code": INTERRUPTED}
            )
        if self.session.run is not None:
            say(
                f"finished jobs are kept; resume with `mi-audit resume {self.session.run}` or type the command again",
                "interrupted",
                "bold yellow",
            )
        else:
            say("nothing was written", "interrupted", "bold yellow")
        return INTERRUPTED


def _bug(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return (
        f"this is a bug in mi-audit: {type(error).__name__}: {error}{place}; "
        "run again with -v for the traceback and report it"
    )


def _check_log(file: Path) -> None:
    """Refuse a log file in a wrong place at once; a full disk, which only costs the log, shows when it is written."""
    try:
        file.open("a").close()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(
                f"expected a log file that can be written, got {error.strerror} on {file}; choose another --log-file"
            ) from error


def _terminate(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise KeyboardInterrupt


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _forget_stdout() -> None:
    """Keep the interpreter from writing to the closed pipe once more when it ends."""
    if hasattr(sys.__stdout__, "fileno"):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
