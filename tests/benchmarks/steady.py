"""What a step costs in the middle of a search, where the first and the last steps of a short run are few of many."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

from mi_audit.core.run import Run
from mi_audit.nn import descent, pool
from mi_audit.nn.mixed_precision import POLISH
from tests.benchmarks.paired import Timing


@contextmanager
def every_step_mixed() -> Iterator[None]:
    """Searches that are asked for bfloat16 compute every step in it, and compare nothing beforehand."""
    with uncompared(), mock.patch.object(descent, "mixed_steps", lambda steps: steps):
        yield


@contextmanager
def uncompared() -> Iterator[None]:
    """Searches that are asked for bfloat16 compute in it, whatever both arithmetics would give."""

    def taken(run: Run, *rest: object) -> Run:
        del rest
        return run

    with mock.patch.object(descent, "decided", taken), mock.patch.object(pool, "decided", taken):
        yield


def with_polish(timing: Timing, single: str, mixed: str) -> Timing:
    """The seconds of `mixed` for a long search, the last tenth of which is in single precision.

    Args:
        timing: In which every step of `mixed` was in bfloat16.
        single, mixed: Names of the candidates.
    """
    pairs = zip(timing.seconds[single], timing.seconds[mixed], strict=True)
    long = tuple((slow + (POLISH - 1) * fast) / POLISH for slow, fast in pairs)
    return replace(timing, seconds={**timing.seconds, mixed: long})


def instead(timing: Timing, single: str, mixed: str) -> Timing:
    """The seconds of a `mixed` that is refused: those of `single`, in which the search is then done."""
    return replace(timing, seconds={**timing.seconds, mixed: timing.seconds[single]})
