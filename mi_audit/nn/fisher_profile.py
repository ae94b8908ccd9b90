"""From squared gradients to curves over depth: shares, their ratio, the gap between two tasks, and the cut it suggests.

Torch-free; every function works on the last axis, so bootstrap draws go through the same arithmetic.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mi_audit.core.errors import Diverged
from mi_audit.core.fisher import Labelling, Profile, Scale, UnitValues
from mi_audit.core.report import Interval
from mi_audit.nn.intervals import clustered_means

DRAWS = 2000
LEVEL = 0.95
Units = Float[ndarray, "*draws units"]
Cuts = Int[ndarray, "*draws"]


class Sample(NamedTuple):
    """The images of one task.

    `squares` are images x units, sums over the parameters of a unit; `people` says whom each image shows.
    """

    squares: Float[ndarray, "n units"]
    people: Int[ndarray, " n"]


class Curves(NamedTuple):
    """What is drawn over depth; `gap` is the cumulative share of inversion minus that of classification."""

    share_cls: Units
    share_mi: Units
    ratio: Units
    cumulative_cls: Units
    cumulative_mi: Units
    gap: Units


def curves(fisher_cls: Units, fisher_mi: Units) -> Curves:
    """Shares of the sum over units, and what follows from them; the ratio is NaN where classification has nothing.

    `s_l = F_l / sum_m F_m`, `R_l = s_l^MI / s_l^cls`, `C(k) = sum of s_l for l <= k`.
    """
    cls, mi = (values / values.sum(axis=-1, keepdims=True) for values in (fisher_cls, fisher_mi))
    ratio = np.divide(mi, cls, out=np.full(np.broadcast_shapes(mi.shape, cls.shape), np.nan), where=cls > 0)
    below_cls, below_mi = cls.cumsum(axis=-1), mi.cumsum(axis=-1)
    return Curves(cls, mi, ratio, below_cls, below_mi, below_mi - below_cls)


def best_cut(gap: Units) -> Cuts:
    """How many units to freeze for the largest gap; 0 when it is nowhere positive. The last column, the head, is none.

    The first of equals wins: freezing more would then gain nothing.
    """
    depths = np.concatenate([np.zeros_like(gap[..., :1]), gap[..., :-1]], axis=-1)
    return np.asarray(depths.round(12).argmax(axis=-1))  # cumulative sums differ in the last digits


def profile(
    cls: Sample, mi: Sample, sizes: Int[ndarray, " units"], labels: Labelling, scale: Scale, seed: int = 0
) -> Profile:
    """All numbers of one definition, with bootstrap intervals over identities; those of the two tasks independently.

    Args:
        cls: Squared gradients of classification; `theta^2 g^2` for the scale `scale-free`.
        mi: The same of inversion.
        sizes: Parameters of every unit; only `mean` divides by them.
        labels: What the squares are; goes into the profile.
        scale: The same.
        seed: Of the bootstrap.

    Raises:
        Diverged: A gradient is not finite, or all of a task are zero.
    """
    for task, sample in (("classification", cls), ("inversion", mi)):
        if not np.isfinite(sample.squares).all() or not sample.squares.any():
            got = "zeros only" if np.isfinite(sample.squares).all() else "some that are not finite"
            raise Diverged(
                f"expected gradients for {task}, got {got}; the model may be certain of every image, or broken"
            )
    divisor = np.maximum(sizes, 1) if scale == "mean" else np.ones_like(sizes)
    means = [sample.squares.mean(axis=0) / divisor for sample in (cls, mi)]
    found = curves(*means)
    drawn = _drawn(cls, mi, divisor, seed)
    nothing: list[Interval | None] = [None] * len(sizes)
    kept = {name: _bands(values) if drawn else nothing for name, values in (drawn or found)._asdict().items()}
    rows = tuple(
        UnitValues(
            fisher_cls=float(means[0][row]),
            fisher_mi=float(means[1][row]),
            share_cls=float(found.share_cls[row]),
            share_mi=float(found.share_mi[row]),
            share_cls_interval=kept["share_cls"][row],
            share_mi_interval=kept["share_mi"][row],
            ratio=None if np.isnan(found.ratio[row]) else float(found.ratio[row]),
            ratio_interval=None if np.isnan(found.ratio[row]) else kept["ratio"][row],
            cumulative_cls=float(found.cumulative_cls[row]),
            cumulative_mi=float(found.cumulative_mi[row]),
            gap=float(found.gap[row]),
            gap_interval=kept["gap"][row],
        )
        for row in range(len(sizes))
    )
    cuts = best_cut(drawn.gap) if drawn else None
    return Profile(
        labels=labels,
        scale=scale,
        values=rows,
        cut=int(best_cut(found.gap)),
        cut_interval=None if cuts is None else _interval(cuts, "inverted_cdf"),
    )


def _drawn(cls: Sample, mi: Sample, divisor: Int[ndarray, " units"], seed: int) -> Curves | None:
    """The curves of every bootstrap draw that has gradients; None when a task has fewer than two identities.

    A draw of identities whose gradients are all zero has no shares and is left out. Where more of them than the
    intervals leave out at their ends are such, what is left says too little, and there are none.
    """
    pairs = [_by_person(sample) for sample in (cls, mi)]
    if min(len(counts) for _, counts in pairs) < 2:
        return None
    first, second = (
        clustered_means(sums, counts, DRAWS, seed + place) / divisor for place, (sums, counts) in enumerate(pairs)
    )
    defined = first.any(axis=1) & second.any(axis=1)
    return curves(first[defined], second[defined]) if defined.mean() >= LEVEL else None


def _by_person(sample: Sample) -> tuple[Float[ndarray, "people units"], Float[ndarray, " people"]]:
    people, place = np.unique(sample.people, return_inverse=True)
    sums = np.zeros((len(people), sample.squares.shape[1]))
    np.add.at(sums, place, sample.squares)
    return sums, np.bincount(place, minlength=len(people)).astype(float)


def _bands(values: Units) -> list[Interval | None]:
    """The interval of every unit; None where a draw gave no number, as a ratio to nothing."""
    return [_interval(column) if np.isfinite(column).all() else None for column in values.T]


def _interval(draws: Float[ndarray, " draws"] | Int[ndarray, " draws"], method: str = "linear") -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method=method)  # type: ignore[call-overload]
    return Interval(low=float(low), high=float(high), level=LEVEL, method="bootstrap over identities")


def evenly(people: Int[ndarray, " n"], limit: int) -> Int[ndarray, " kept"]:
    """Rows of at most `limit` images, as many of each person as can be, spread over that person's images, in order."""
    if len(people) <= limit:
        return np.arange(len(people))
    mine = {person: np.flatnonzero(people == person) for person in np.unique(people)}
    counts = dict.fromkeys(mine, 0)
    left = limit
    while left:
        open_ones = [person for person, rows in mine.items() if counts[person] < len(rows)]
        for person in open_ones[:left]:
            counts[person] += 1
        left -= len(open_ones[:left])
    spread = [rows[np.arange(counts[p]) * len(rows) // max(1, counts[p])] for p, rows in mine.items()]
    return np.sort(np.concatenate(spread))
