"""Exact bounds and tests for counts of exposed identities: no normal approximation, no torch, quick to import.

`exposed` of `attacked` identities, drawn at random out of `total`; `total` None means out of a large population. Every
bound is one-sided at level 1 - alpha. With `total` known it is hypergeometric, and exact when all were attacked.
"""

import math
from collections.abc import Iterator
from itertools import chain, pairwise

import numpy as np
from scipy import special

SLACK = 1e-9  # so that 0.1 * 30 counts as 3
MOST = 100_000  # identities that the searches look at
SETTLED = 20  # allowed exposed ones in a row over which the power has to hold


def lower_share(exposed: int, attacked: int, total: int | None = None, alpha: float = 0.05) -> float:
    """The share over all identities that is exceeded with confidence 1 - alpha (Clopper & Pearson 1934 without total).

    With `total` it is the smallest share of the finite set that `exposed` or more would not be too many for.
    """
    if total is None:
        return 0.0 if exposed == 0 else float(special.betaincinv(exposed, attacked - exposed + 1, alpha))
    low, high = exposed, total - (attacked - exposed)
    while low < high:  # the upper tail grows with the number of exposed ones
        middle = (low + high) // 2
        tail = 1.0 if exposed == 0 else 1 - hypergeometric_cdf(exposed - 1, total, middle, attacked)
        low, high = (low, middle) if tail > alpha else (middle + 1, high)
    return low / total


def upper_share(exposed: int, attacked: int, total: int | None = None, alpha: float = 0.05) -> float:
    """The share over all identities that is not reached with confidence 1 - alpha (Clopper & Pearson 1934).

    With `total` it is the smallest share of the finite set that so few are too few for; of a census, the share itself.
    """
    if total is None:
        return 1.0 if exposed == attacked else float(special.betaincinv(exposed + 1, attacked - exposed, 1 - alpha))
    low, high = exposed, total - (attacked - exposed)
    while low < high:
        middle = (low + high) // 2
        refuted = hypergeometric_cdf(exposed, total, middle, attacked) <= alpha
        low, high = (low, middle) if refuted else (middle + 1, high)
    return low / total


def hypergeometric_cdf(exposed: int, total: int, marked: int, drawn: int) -> float:
    """P(X <= exposed) when `drawn` of `total` are drawn without replacement and `marked` of them are exposed."""
    first, last = max(0, drawn - (total - marked)), min(exposed, drawn, marked)
    if last < first:
        return 0.0
    if exposed >= min(drawn, marked):
        return 1.0
    hits = np.arange(first, last + 1)
    logs = _log_choose(marked, hits) + _log_choose(total - marked, drawn - hits) - _log_choose(total, drawn)
    return min(1.0, float(np.exp(logs).sum()))


def below(exposed: int, attacked: int, tau: float, total: int | None = None, alpha: float = 0.05) -> bool:
    """Whether the upper bound does not exceed `tau`: a share of `tau` or more is refuted, or more is impossible."""
    if total is None:
        return exposed < attacked and float(special.bdtr(exposed, attacked, tau)) <= alpha
    if exposed + total - attacked <= tau * total + SLACK:  # even if all the others are
        return True
    return hypergeometric_cdf(exposed, total, math.floor(tau * total + SLACK), attacked) <= alpha


def above(exposed: int, attacked: int, tau: float, total: int | None = None, alpha: float = 0.05) -> bool:
    """Whether the lower bound exceeds `tau`: a share of `tau` or less is refuted."""
    if exposed == 0:
        return False
    if total is None:
        return float(special.betainc(exposed, attacked - exposed + 1, tau)) < alpha
    marked = math.floor(tau * total + SLACK)
    return 1 - hypergeometric_cdf(exposed - 1, total, marked, attacked) <= alpha


def required(exposed: int, tau: float, total: int | None = None, alpha: float = 0.05) -> int | None:
    """The fewest identities that certify a share of at most `tau` when `exposed` of them are; None if none do."""
    last = MOST if total is None else total
    if not below(exposed, last, tau, total, alpha):
        return None
    first = exposed + 1
    while first < last:  # more identities with as many exposed only strengthen the case
        middle = (first + last) // 2
        first, last = (first, middle) if below(exposed, middle, tau, total, alpha) else (middle + 1, last)
    return first


def most_passing(attacked: int, tau: float, total: int | None = None, alpha: float = 0.05) -> int:
    """The most exposed ones of `attacked` that still pass; -1 when even none of them would be too few to tell."""
    low, high = -1, attacked
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if below(middle, attacked, tau, total, alpha) else (low, middle - 1)
    return low


def fewest_failing(attacked: int, tau: float, total: int | None = None, alpha: float = 0.05) -> int:
    """The fewest exposed ones of `attacked` that fail; attacked + 1 when even all of them would not."""
    low, high = 0, attacked + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if above(middle, attacked, tau, total, alpha) else (middle + 1, high)
    return low


def at_most(exposed: int, attacked: int, rate: float, total: int | None = None) -> float:
    """P(X <= exposed) when the true share is `rate`; with `total` the nearest number of identities is exposed."""
    if exposed < 0:
        return 0.0
    if total is None:
        return float(special.bdtr(min(exposed, attacked), attacked, rate))
    return hypergeometric_cdf(exposed, total, round(rate * total), attacked)


def pass_power(attacked: int, tau: float, rate: float, total: int | None = None, alpha: float = 0.05) -> float:
    """The probability to pass with `attacked` identities when the true share is `rate`."""
    return at_most(most_passing(attacked, tau, total, alpha), attacked, rate, total)


def sample_size(
    tau: float, rate: float, power: float, total: int | None = None, alpha: float = 0.05
) -> tuple[int, int] | None:
    """From how many identities on a true share of `rate` passes with probability `power`, and how many of them may be
    exposed.

    More identities never fall below `power` again, although it drops a little before every further one that is allowed.
    None when no number is enough, because `rate` is too near to `tau`.
    """
    found: tuple[int, int] | None = None
    if rate > tau or (total is None and rate == tau):
        return None
    held = 0
    steps = chain(_certifying(tau, total, alpha), [(0, (MOST if total is None else total) + 1)])
    for (exposed, attacked), (_, following) in pairwise(steps):
        if at_most(exposed, following - 1, rate, total) < power:
            found, held = None, 0
            continue
        found, held = found or (attacked, exposed), held + 1
        if held == SETTLED:
            break
    return found


def mcnemar(only_before: int, only_after: int) -> float:
    """The two-sided exact p-value of a change in paired yes/no outcomes (McNemar 1947): binomial on the discordant."""
    discordant = only_before + only_after
    return 1.0 if discordant == 0 else min(1.0, 2 * float(special.bdtr(min(only_before, only_after), discordant, 0.5)))


def mcnemar_more(only_before: int, only_after: int) -> float:
    """The one-sided exact p-value that `only_after` is not the larger part of the discordant pairs."""
    return 1.0 if only_after == 0 else float(special.bdtr(only_before, only_before + only_after, 0.5))


def _certifying(tau: float, total: int | None, alpha: float) -> Iterator[tuple[int, int]]:
    """(exposed, fewest identities that certify so many), for 0, 1, 2, ... exposed; ends with the population."""
    last = MOST if total is None else total
    exposed, attacked = 0, 1
    while attacked <= last:
        if below(exposed, attacked, tau, total, alpha):
            yield exposed, attacked
            exposed += 1
        attacked += 1


def _log_choose(among: int, chosen: np.ndarray | int) -> np.ndarray | float:
    return special.gammaln(among + 1) - special.gammaln(chosen + 1) - special.gammaln(among - chosen + 1)
