"""Deciding while counting: e-processes that hold at any stopping time (Ville 1939), so that peeking costs nothing.

The evidence against "the share is `tau` or more" is a likelihood ratio, with a Beta prior truncated below `tau` in the
numerator (Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals
of Statistics 2021). For a finite set of identities drawn without replacement it is a bet against the mean that the
hypothesis leaves for the rest (Waudby-Smith, Ramdas, "Estimating means of bounded random variables by betting", JRSS-B
2024). Outcomes are 0/1 in the random order of the draw, along the last axis.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import special

Outcomes = Float[ndarray, "*runs n"]
State = Literal["PASS", "FAIL", "CONTINUE"]
BELOW_PRIOR = (0.5, 5.0)  # expects few exposed ones
ABOVE_PRIOR = (1.0, 1.0)
SLACK = 1e-9  # so that (0.3 * 10 - 0) / 3 counts as 1
HALVINGS = 40  # of the interval in which a bound lies


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Where a sequential test stands.

    Attributes:
        state: `CONTINUE` when all outcomes were seen and none of the two hypotheses is refuted, or what came later
            speaks against what was refuted earlier.
        seen: Identities up to the decision; all of them when there is none.
    """

    state: State
    seen: int


def evidence_below(outcomes: Outcomes, tau: float, total: int | None = None) -> Outcomes:
    """Log of the e-process against "the share is at least `tau`", after each outcome.

    Args:
        outcomes: 0 or 1 each.
        tau: Between 0 and 1.
        total: Size of the finite set drawn from; None means a large population.
    """
    if total is not None:
        return _finite(outcomes, tau, total, below=True)
    hits, seen = _counts(outcomes)
    a, b = BELOW_PRIOR
    mixture = _log_mass_below(tau, hits + a, seen - hits + b) - _log_mass_below(tau, np.array(a), np.array(b))
    return mixture - _log_likelihood(hits, seen, tau)


def evidence_above(outcomes: Outcomes, tau: float, total: int | None = None) -> Outcomes:
    """Log of the e-process against "the share is at most `tau`", after each outcome; arguments as above."""
    if total is not None:
        return _finite(outcomes, tau, total, below=False)
    hits, seen = _counts(outcomes)
    a, b = ABOVE_PRIOR
    mixture = _log_mass_below(1 - tau, seen - hits + b, hits + a) - _log_mass_below(1 - tau, np.array(b), np.array(a))
    return mixture - _log_likelihood(hits, seen, tau)


def decide(
    at_worst: Float[ndarray, " n"],
    at_best: Float[ndarray, " n"],
    tau_pass: float,
    tau_fail: float,
    total: int | None = None,
    alpha: float = 0.05,
) -> Stop:
    """Pass or fail at the first identity where the evidence reaches 1 / alpha, unless what follows contradicts it.

    All outcomes count, also those after that identity: when both hypotheses are refuted, or the share of all that were
    seen lies on the other side of the limit, one of the two refutations is an error, and nobody knows which.

    Args:
        at_worst: Outcomes with every unknown counted as exposed; they have to refute `tau_pass` or more.
        at_best: With every unknown counted as not exposed; they have to refute `tau_fail` or less.
        tau_pass: Share that must be refuted to pass; below `tau_fail` when the judge misses some of the exposed ones.
        tau_fail: Share that must be refuted to fail.
        total: Size of the finite set; None means a large population.
        alpha: Error rate of each of the two decisions.
    """
    limit = -np.log(alpha)
    passed = _first(evidence_below(at_worst, tau_pass, total) >= limit)
    failed = _first(evidence_above(at_best, tau_fail, total) >= limit)
    everybody = len(at_worst)
    if passed <= everybody < failed and at_worst.mean() <= tau_pass + SLACK:
        return Stop(state="PASS", seen=passed)
    if failed <= everybody < passed and at_best.mean() > tau_fail + SLACK:
        return Stop(state="FAIL", seen=failed)
    return Stop(state="CONTINUE", seen=everybody)


def upper_share(outcomes: Float[ndarray, " n"], total: int | None = None, alpha: float = 0.05) -> float:
    """The smallest share that the outcomes refute, whenever counting stopped; never below the share seen."""
    return max(_edge(outcomes, total, alpha, upper=True), float(outcomes.mean()))


def lower_share(outcomes: Float[ndarray, " n"], total: int | None = None, alpha: float = 0.05) -> float:
    """The largest share that the outcomes refute, whenever counting stopped; never above the share seen."""
    return min(_edge(outcomes, total, alpha, upper=False), float(outcomes.mean()))


def _edge(outcomes: Float[ndarray, " n"], total: int | None, alpha: float, *, upper: bool) -> float:
    evidence, limit = evidence_below if upper else evidence_above, -np.log(alpha)
    standing, refuted = (0.0, 1.0) if upper else (1.0, 0.0)
    for _ in range(HALVINGS):
        middle = (standing + refuted) / 2
        if (evidence(outcomes, middle, total) >= limit).any():
            refuted = middle
        else:
            standing = middle
    return refuted


def _counts(outcomes: Outcomes) -> tuple[Outcomes, Outcomes]:
    """Exposed ones and identities seen, after each outcome."""
    hits = np.cumsum(outcomes, axis=-1)
    return hits, np.broadcast_to(np.arange(1.0, outcomes.shape[-1] + 1), hits.shape)


def _finite(outcomes: Outcomes, tau: float, total: int, *, below: bool) -> Outcomes:
    """The wealth of betting on the mean of the truncated Beta posterior against the mean left under the hypothesis."""
    hits, seen = _counts(outcomes)
    hits, seen = hits - outcomes, seen - 1  # before each outcome: bets are placed in advance
    left = (tau * total - hits) / (total - seen)
    inside = np.clip(left, 1e-12, 1 - 1e-12)
    a, b = (
        (hits + BELOW_PRIOR[0], seen - hits + BELOW_PRIOR[1])
        if below
        else (hits + ABOVE_PRIOR[0], seen - hits + ABOVE_PRIOR[1])
    )
    mean = _mean_below(inside, a, b) if below else 1 - _mean_below(1 - inside, b, a)
    with np.errstate(divide="ignore"):
        factor = np.where(outcomes > 0, np.log(mean) - np.log(inside), np.log1p(-mean) - np.log1p(-inside))
    certain = left >= 1 - SLACK if below else left <= SLACK  # all, or none, of the rest, if the hypothesis holds
    impossible = (left > 1 + SLACK if below else left < -SLACK) | (certain & (outcomes != below))
    settled = left <= 0 if below else left >= 1
    return np.cumsum(np.where(impossible, np.inf, np.where(settled, 0.0, factor)), axis=-1)


def _mean_below(end: ndarray, a: ndarray, b: ndarray) -> ndarray:
    """The mean of Beta(a, b) truncated to [0, end], at most `end`."""
    share = _log_mass_below(end, a + 1, b) - _log_mass_below(end, a, b)
    return np.minimum(np.exp(share), end)


def _log_mass_below(end: ndarray | float, a: ndarray, b: ndarray) -> ndarray:
    """Log of the incomplete beta function B(end; a, b), also where the regularised one underflows."""
    with np.errstate(divide="ignore"):
        plain = np.log(special.betainc(a, b, end)) + special.betaln(a, b)
    tail = a * np.log(end) + b * np.log1p(-np.asarray(end)) - np.log(a)  # times a series that is at least one
    return np.where(np.isfinite(plain), plain, tail)


def _log_likelihood(hits: ndarray, seen: ndarray, tau: float) -> ndarray:
    return special.xlogy(hits, tau) + special.xlog1py(seen - hits, -tau)


def _first(crossed: ndarray) -> int:
    """How many outcomes it took; one more than there are when it never happened."""
    return int(np.argmax(crossed)) + 1 if crossed.any() else len(crossed) + 1
