"""Where a count of exposed identities stands towards a limit, after a fixed number of them or while counting."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mi_audit.nn import exact, sequential

Outcomes = tuple[float, ...]
FARTHEST = 5000  # identities that a forecast looks at, when nobody knows how many there are
SMALLEST = 1e-9  # limit, so that it has a logarithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """One-sided bounds and what they decide.

    Attributes:
        state: `PASS` or `FAIL` by the bounds alone, else `CONTINUE`.
        lower, upper: Of the share over all identities.
        method: How they were computed.
        more: Further identities that would decide if the share stayed; None when decided or hopeless.
    """

    state: sequential.State
    lower: float
    upper: float
    method: str
    more: int | None = None


def fixed_bounds(
    outcomes: tuple[Outcomes, Outcomes], total: int | None, tau: float, alpha: float, sensitivity: float
) -> Bounds:
    """Exact bounds after all outcomes: of the finite set when its size is known, and of its census when all were seen.

    Args:
        outcomes: 0 or 1 per identity, with the unknown ones exposed, and with them not exposed.
        total: Size of the set they were drawn from; None when unknown.
        tau: Limit on the share.
        alpha: Error rate of each bound.
        sensitivity: Share of the exposed ones that the judge is sure to recognise; it lowers the limit to pass.
    """
    worst, best = (int(sum(part)) for part in outcomes)
    seen = len(outcomes[0])
    state: sequential.State = "CONTINUE"
    if exact.below(worst, seen, tau * sensitivity, total, alpha):
        state = "PASS"
    elif exact.above(best, seen, tau, total, alpha):
        state = "FAIL"
    method = "Clopper-Pearson" if total is None else "census" if seen == total else "hypergeometric"
    more = None
    if state == "CONTINUE":
        more = _forecast(worst, best, seen, total, tau, alpha, sensitivity)
    return Bounds(
        state=state,
        lower=exact.lower_share(best, seen, total, alpha),
        upper=exact.upper_share(worst, seen, total, alpha),
        method=method,
        more=more,
    )


def sequential_bounds(
    outcomes: tuple[Outcomes, Outcomes], total: int | None, tau: float, alpha: float, sensitivity: float
) -> Bounds:
    """Bounds that hold although counting stopped as soon as they decided; arguments as of `fixed_bounds`.

    All outcomes count, also those that came in after the decision. Once everybody was looked at, the census decides,
    whatever the evidence said on the way: it has no error.
    """
    if len(outcomes[0]) == total:
        return fixed_bounds(outcomes, total, tau, alpha, sensitivity)
    worst, best = (np.array(part) for part in outcomes)
    stop = sequential.decide(worst, best, max(SMALLEST, tau * sensitivity), tau, total, alpha)
    more = None
    if stop.state == "CONTINUE":
        more = _forecast_sequential(worst, best, total, tau, alpha, sensitivity)
    return Bounds(
        state=stop.state,
        lower=sequential.lower_share(best, total, alpha),
        upper=sequential.upper_share(worst, total, alpha),
        method="e-process",
        more=more,
    )


def upper_bound(outcomes: Outcomes, total: int, alpha: float, peeking: bool) -> float:
    """Upper bound of the share of a control among `total`; `peeking` makes it hold however counting stopped."""
    if peeking and len(outcomes) < total:
        return sequential.upper_share(np.array(outcomes), total, alpha)
    return exact.upper_share(int(sum(outcomes)), len(outcomes), total, alpha)


def _forecast(
    worst: int, best: int, seen: int, total: int | None, tau: float, alpha: float, sensitivity: float
) -> int | None:
    """Further identities until a bound decides, if the shares stay as they are."""

    def decides(attacked: int) -> bool:
        high, low = math.ceil(worst * attacked / seen - exact.SLACK), math.floor(best * attacked / seen + exact.SLACK)
        return exact.below(high, attacked, tau * sensitivity, total, alpha) or exact.above(
            low, attacked, tau, total, alpha
        )

    candidates = _growing(seen, FARTHEST if total is None else total)
    return next((attacked - seen for attacked in candidates if decides(attacked)), None)


def _growing(seen: int, last: int) -> Iterator[int]:
    """Numbers from `seen` to `last`, in steps of at least one and of about two percent."""
    while seen < last:
        seen = min(last, seen + max(1, seen // 50))
        yield seen


def _forecast_sequential(
    worst: np.ndarray, best: np.ndarray, total: int | None, tau: float, alpha: float, sensitivity: float
) -> int | None:
    """Further identities until the evidence or the census decides, if the exposed ones keep coming as often."""
    seen, last = len(worst), FARTHEST if total is None else total
    steps = np.arange(1, last - seen + 1)

    def extended(part: np.ndarray, rounding: float) -> np.ndarray:
        return np.concatenate([part, np.diff(np.floor(part.mean() * np.concatenate([[0], steps]) + rounding))])

    high, low = extended(worst, 0.5), extended(best, 0.5)
    stop = sequential.decide(high, low, max(SMALLEST, tau * sensitivity), tau, total, alpha)
    if stop.state != "CONTINUE" and stop.seen > seen:
        return stop.seen - seen
    if total is None:
        return None
    passes = exact.below(int(high.sum()), total, tau * sensitivity, total, alpha)
    return total - seen if passes or exact.above(int(low.sum()), total, tau, total, alpha) else None
