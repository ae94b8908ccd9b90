"""Progress on standard error: bars with an ETA for people, one plain line now and then for logs."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mi_audit.audit.progress import ProgressSink, Silent
from mi_audit.cli.session import Session, say, stderr

INTERVAL = 15.0  # seconds between two plain lines about the same work
REDRAW = 0.1


class Lines:
    """One plain line per stage, note and warning, and at most one per label and interval.

    Args:
        write: Takes a line.
        interval: Seconds.
        clock: Seconds since some moment.
    """

    def __init__(
        self, write: Callable[[str], None], interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._interval, self._clock = write, interval, clock
        self._began: dict[str, tuple[float, int]] = {}
        self._shown: dict[str, float] = {}

    def stage(self, title: str) -> None:
        self._write(f"== {title}")

    def step(self, label: str, done: int, total: int) -> None:
        now = self._clock()
        began, first = self._began.setdefault(label, (now, done))
        if done >= total:
            if label in self._shown:
                self._write(f"{label}: done in {duration(now - began)}")
            self._began.pop(label), self._shown.pop(label, None)
        elif now - self._shown.get(label, began) >= self._interval:
            self._shown[label] = now
            left = f", about {duration((now - began) / (done - first) * (total - done))} left" if done > first else ""
            self._write(f"{label}: {100 * done // max(total, 1)}%{left}")

    def note(self, text: str) -> None:
        self._write(text)

    def warn(self, text: str) -> None:
        self._write(f"warning: {text}")


class Bars:
    """A bar for everything that is going on; a finished bar gives way to a line when it took a while."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(style="cyan"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]left"),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._drawn: dict[str, float] = {}
        self._console = console

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *exit: object) -> None:
        self._progress.stop()

    def stage(self, title: str) -> None:
        self._clear()
        self._console.print(Text.assemble(("▸ ", "bold cyan"), (title, "bold")))

    def step(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(Text(label).markup, total=total)
        if done >= total or now - self._drawn.get(label, 0.0) >= REDRAW:
            self._drawn[label] = now
            self._progress.update(self._tasks[label], completed=done, total=total)
        if done >= total:
            self._finish(label)

    def note(self, text: str) -> None:
        self._console.print(Text.assemble(("  ", ""), (text, "dim")))

    def warn(self, text: str) -> None:
        self._console.print(Text.assemble(("  warning: ", "yellow"), text))

    def _finish(self, label: str) -> None:
        task = self._tasks.pop(label)
        spent = next(shown.elapsed or 0.0 for shown in self._progress.tasks if shown.id == task)
        self._progress.remove_task(task)
        if spent >= 1:
            self._console.print(Text.assemble(("  ✓ ", "green"), label, (f"  {duration(spent)}", "dim")))

    def _clear(self) -> None:
        for label in list(self._tasks):
            self._progress.remove_task(self._tasks.pop(label))


class Several:
    """Reports to every one of `sinks`."""

    def __init__(self, *sinks: ProgressSink) -> None:
        self._sinks = sinks

    def stage(self, title: str) -> None:
        for sink in self._sinks:
            sink.stage(title)

    def step(self, label: str, done: int, total: int) -> None:
        for sink in self._sinks:
            sink.step(label, done, total)

    def note(self, text: str) -> None:
        for sink in self._sinks:
            sink.note(text)

    def warn(self, text: str) -> None:
        for sink in self._sinks:
            sink.warn(text)


@contextmanager
def watching(session: Session) -> Iterator[ProgressSink]:
    """The sink that suits the terminal and the global options, live while the block runs."""
    log: ProgressSink = Lines(session.log) if session.log_file is not None else Silent()
    if session.verbosity < 0:
        yield log
        return
    console = stderr()
    if not (session.progress and console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")):
        yield Several(Lines(say), log)
        return
    with Bars(console) as bars:
        yield Several(bars, log)


def duration(seconds: float) -> str:
    """Seconds as people say them: `12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
