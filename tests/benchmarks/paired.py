"""Times candidates that do the same work side by side: interleaved, in rotated order, on one clock."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

Clock = Literal["cpu", "wall"]
LEAST = 3  # repetitions, however short the time
CORES = Path("/proc/stat")


class Spread(NamedTuple):
    """Median and range of a few numbers."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread":
        return cls(statistics.median(numbers), min(numbers), max(numbers))


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every candidate, one per repetition; position i of all lists is the same repetition.

    Attributes:
        clock: `cpu` is the processor time of the process, `wall` is time that passed.
        seconds: By candidate.
        first: Of the first call, which is not among them: caches, compilation.
        load: Load average of the machine before and after.
    """

    clock: Clock
    seconds: Mapping[str, tuple[float, ...]]
    first: Mapping[str, float]
    load: tuple[float, float]

    @property
    def repetitions(self) -> int:
        return len(next(iter(self.seconds.values())))

    def ratio(self, reference: str, candidate: str) -> Spread:
        """How many times faster `candidate` is than `reference`, repetition by repetition."""
        pairs = zip(self.seconds[reference], self.seconds[candidate], strict=True)
        return Spread.of([slow / fast for slow, fast in pairs])


def measure(
    candidates: Mapping[str, Callable[[], object]],
    repetitions: int,
    clock: Clock,
    budget: float = float("inf"),
    now: Callable[[], float] | None = None,
) -> Timing:
    """Call every candidate once to warm up, then `repetitions` times, each time starting with another one.

    Args:
        candidates: What to time, by name; all do the same work.
        repetitions: Calls of each that count.
        clock: Which seconds.
        budget: Stop after so many seconds, though not before three repetitions.
        now: The clock itself, for tests.
    """
    now = now or {"cpu": time.process_time, "wall": time.perf_counter}[clock]
    before, began = os.getloadavg()[0], time.perf_counter()
    first = {name: _timed(work, now) for name, work in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(repetitions):
        if repetition >= LEAST and (time.perf_counter() - began) * (1 + 1 / (repetition + 1)) > budget:
            break
        for name in rotated(list(candidates), repetition):
            seconds[name].append(_timed(candidates[name], now))
    return Timing(clock, {name: tuple(all_) for name, all_ in seconds.items()}, first, (before, os.getloadavg()[0]))


def rotated(names: Sequence[str], repetition: int) -> list[str]:
    """Every name once, another one first each time."""
    start = repetition % len(names)
    return [*names[start:], *names[:start]]


def quiet_clock(device: str, threads: int) -> Clock:
    """Wall clock for an accelerator or an idle machine; processor time where others compute, which needs one thread."""
    return "wall" if device != "cpu" or (threads > 1 and cores_in_use() < 0.5) else "cpu"


def cores_in_use(seconds: float = 1.0) -> float:
    """How many cores compute now: looked at for some seconds where the system tells, else the load of a minute."""
    if not CORES.is_file():
        return os.getloadavg()[0]
    before = _idle_seconds()
    time.sleep(seconds)
    return (os.cpu_count() or 1) - (_idle_seconds() - before) / seconds


def _idle_seconds() -> float:
    """Sum over all cores of the time that they waited, for a disk or for nothing."""
    _, _user, _nice, _system, idle, waiting, *_ = CORES.read_text().splitlines()[0].split()
    return (int(idle) + int(waiting)) / os.sysconf("SC_CLK_TCK")


def _timed(work: Callable[[], object], now: Callable[[], float]) -> float:
    gc.collect()
    finish()
    start = now()
    work()
    finish()
    return now() - start


def finish() -> None:
    """Wait until an accelerator has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
