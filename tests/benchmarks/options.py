"""How the benchmark is run, and its clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import paired
from tests.benchmarks.cases import Precision
from tests.benchmarks.paired import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure.

    Attributes:
        device, precisions, clock: Where, in what, on which seconds.
        repetitions: Of the paired timing; fewer when `budget` seconds are over, but three at least.
        seeds: Over which losses and rates are compared.
        cache: Of trained networks; None is the user's.
        say: Receives a line per stage.
    """

    device: str
    precisions: tuple[Precision, ...]
    clock: Clock
    repetitions: int
    budget: float
    seeds: int
    cache: Path | None
    say: Callable[[str], None]

    def now(self) -> float:
        return time.process_time() if self.clock == "cpu" else time.perf_counter()


def timed(work: Callable[[], Any], options: Options) -> tuple[float, Any]:
    """Seconds of a call, and what it gave."""
    paired.finish()
    start = options.now()
    result = work()
    paired.finish()
    return options.now() - start, result
