"""Progress on standard error: bars with an ETA for people, one plain line now and then for logs."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
LEAST_WAY, LEAST_REPORTS = 0.05, 3  # before a time is foretold
PAUSE = 3.0  # how many times longer than all other gaps together a pause is


@dataclass
class Pace:
    """How fast something goes, by its own reports alone.

    A gap that took longer than three times all the others together was a pause, such as a laptop asleep.

    Attributes:
        began, first: Seconds at the first report, and how much was done by then.
        now, done: The same of the last report.
        reports: How many there were.
        gap, leap: The longest time between two reports, and how much was done in it.
    """

    began: float
    first: int
    now: float
    done: int
    reports: int = 1
    gap: float = 0.0
    leap: int = 0

    def report(self, now: float, done: int) -> None:
        if now - self.now > self.gap:
            self.gap, self.leap = now - self.now, done - self.done
        self.now, self.done, self.reports = now, done, self.reports + 1

    def left(self, total: int) -> float | None:
        """Seconds until `total`; None while too little is known: before 5 % of the way, or before 3 reports."""
        spent, way = self.now - self.began, self.done - self.first
        if self.reports < LEAST_REPORTS or way <= 0 or way < LEAST_WAY * (total - self.first):
            return None
        if self.gap > PAUSE * (spent - self.gap) and way > self.leap:
            spent, way = spent - self.gap, way - self.leap
        return spent / way * (total - self.done)


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
        self._paces: dict[str, Pace] = {}
        self._shown: dict[str, float] = {}

    def stage(self, title: str) -> None:
        self._paces.clear()
        self._shown.clear()
        self._write(f"== {title}")

    def step(self, label: str, done: int, total: int) -> None:
        now, pace = self._clock(), self._paces.get(label)
        if pace is None or done < pace.done:  # the label of work that was never finished is used again
            pace = self._paces[label] = Pace(now, done, now, done)
            self._shown.pop(label, None)
        else:
            pace.report(now, done)
        if done >= total:
            if label in self._shown:
                self._write(f"{label}: done in {duration(now - pace.began)}")
            self._paces.pop(label), self._shown.pop(label, None)
        elif now - self._shown.get(label, pace.began) >= self._interval:
            self._shown[label] = now
            seconds = pace.left(total)
            left = "" if seconds is None else f", about {duration(seconds)} left"
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
