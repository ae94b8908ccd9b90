"""Confidence intervals over identities: images of one person are not independent, so people are what is resampled.

Tables are seeds x classes, NaN where a pair is missing.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import stats

from mi_audit.core.report import ClassValue, Interval

Table = Float[ndarray, "seeds classes"]
TOO_FEW = "fewer than two identities: no interval"
CHUNK = 1000  # draws held in memory at once


def by_class(
    values: Float[ndarray, " n"], labels: Int[ndarray, " n"], seeds: Int[ndarray, " n"]
) -> tuple[ClassValue, ...]:
    """The mean of `values` in every (class, seed) that occurs, ordered by class, then seed."""
    pairs, place = np.unique(np.stack([labels, seeds], axis=1), axis=0, return_inverse=True)
    counts = np.bincount(place.ravel(), minlength=len(pairs))
    means = np.bincount(place.ravel(), weights=values, minlength=len(pairs)) / counts
    return tuple(
        ClassValue(label=int(label), seed=int(seed), value=float(mean), count=int(count))
        for (label, seed), mean, count in zip(pairs, means, counts, strict=True)
    )


def tables(rows: tuple[ClassValue, ...]) -> tuple[Table, Table]:
    """Values and counts, seeds x classes, both in increasing order; NaN and 0 where a pair is missing."""
    labels, columns = np.unique([row.label for row in rows], return_inverse=True)
    seeds, lines = np.unique([row.seed for row in rows], return_inverse=True)
    values, counts = np.full((len(seeds), len(labels)), np.nan), np.zeros((len(seeds), len(labels)))
    values[lines, columns] = [row.value for row in rows]
    counts[lines, columns] = [row.count for row in rows]
    return values, counts


def clopper_pearson(hits: int | float, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided binomial interval for `hits` of `n` (Clopper & Pearson 1934).

    The upper end at level 0.90 is the one-sided 95 % bound. Fractions of a hit are interpolated by the same formula.
    """
    tail = (1 - level) / 2
    low = 0.0 if hits <= 0 else float(stats.beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits >= n else float(stats.beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def crossed_bootstrap(
    values: Table, level: float = 0.95, draws: int = 10_000, seed: int = 0, weights: Table | None = None
) -> tuple[float, float]:
    """The percentile interval of the mean when seeds and identities are both samples.

    The pigeonhole bootstrap resamples rows and columns independently and weighs each cell by the product (Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 2007). With one seed it is the identity-clustered bootstrap.
    It is approximate, and too narrow below some 50 identities.

    Args:
        values: Seeds x classes; NaN is missing.
        level: Nominal two-sided coverage.
        draws: Bootstrap samples.
        seed: Of the random generator.
        weights: Number of images behind each cell; None weighs all cells alike.

    Returns:
        NaN twice when every cell is missing.
    """
    weight = np.where(np.isnan(values), 0.0, 1.0 if weights is None else weights)
    total = np.where(weight > 0, values, 0.0) * weight
    means = np.concatenate(list(_resampled(total, weight, draws, np.random.default_rng(seed))))
    means = means[~np.isnan(means)]
    if not len(means):
        return np.nan, np.nan
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_interval(values: Table, level: float = 0.95, weights: Table | None = None) -> Interval | None:
    """An interval for a mean of shares in [0, 1]; None with fewer than two identities.

    Where all identities agree there is nothing to resample: the exact binomial over identities takes over.
    """
    means = _identity_means(values)
    if len(means) < 2:
        return None
    if np.ptp(means) == 0:
        low, high = clopper_pearson(float(means.sum()), len(means), level)
        return Interval(low=low, high=high, level=level, method=f"exact binomial over {len(means)} identities")
    return mean_interval(values, level, weights)


def mean_interval(values: Table, level: float = 0.95, weights: Table | None = None) -> Interval | None:
    """The bootstrap interval of a mean over seeds and identities; None with fewer than two identities."""
    identities = len(_identity_means(values))
    if identities < 2:
        return None
    low, high = crossed_bootstrap(values, level, weights=weights)
    seeds = int((~np.isnan(values)).any(axis=1).sum())
    over = f"{identities} identities" if seeds == 1 else f"{seeds} seeds x {identities} identities"
    return Interval(low=low, high=high, level=level, method=f"bootstrap over {over}")


def paired_difference(before: Table, after: Table, level: float = 0.95) -> tuple[float | None, Interval | None]:
    """The mean of after - before over the cells that both tables have, and its interval.

    Value None when there is no such cell, interval None with fewer than two identities.
    """
    difference = after - before
    if np.isnan(difference).all():
        return None, None
    return float(np.nanmean(difference)), mean_interval(difference, level)


def clustered_means(
    sums: Float[ndarray, "clusters columns"], counts: Float[ndarray, " clusters"], draws: int, seed: int
) -> Float[ndarray, "draws columns"]:
    """Means per image of many columns at once, with whole clusters (identities) drawn again; for functions of them.

    Args:
        sums: Of each column over the images of each cluster.
        counts: Images of each cluster.
        draws: Bootstrap samples.
        seed: Of the random generator.
    """
    clusters = len(counts)
    drawn = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), draws)
    return (drawn @ sums) / (drawn @ counts)[:, None]


def _resampled(total: Table, weight: Table, draws: int, rng: np.random.Generator) -> Iterator[Float[ndarray, " draws"]]:
    seeds, classes = total.shape
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size)  # size seeds
        columns = rng.multinomial(classes, np.full(classes, 1 / classes), size)  # size classes
        drawn = ((rows @ weight) * columns).sum(axis=1)
        sums = ((rows @ total) * columns).sum(axis=1)
        yield np.divide(sums, drawn, out=np.full(size, np.nan), where=drawn > 0)


def _identity_means(values: Table) -> Float[ndarray, " identities"]:
    present = ~np.isnan(values)
    seen = present.any(axis=0)
    return np.where(present, values, 0.0).sum(axis=0)[seen] / present.sum(axis=0)[seen]
