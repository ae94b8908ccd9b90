"""Share closer to training: do reconstructions resemble the pictures that were trained on, or the person in general?"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from scipy import stats
from torch import Tensor

from mi_audit.core.dataset import Dataset
from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import ClassValue, Interval, Measurement
from mi_audit.nn.intervals import TOO_FEW, by_class, share_interval, tables

EVEN = 0.5
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class ShareCloser(Metric):
    """The mean over reconstructions of `1[nearest training image is nearer than nearest held-out image]`.

    Both sets show the person of the attacked class and have the same size: of the larger one, the mean over all subsets
    as large as the smaller one is taken, in closed form. A tie counts half. Above one half, single training pictures
    are remembered; at one half only the person leaks. The interval resamples people, and its method names the one-sided
    sign test over people.

    In pixels one half is exact for an attack that remembers no picture, because the two sets are then interchangeable.
    In the evaluator's features it is not: an evaluator that was trained on the same pictures draws everything towards
    them, so that this number is to be compared with the control, not with one half.
    """

    names: ClassVar = ("share_closer_pixel", "share_closer_evaluator")
    unit: ClassVar = "share"
    summary: ClassVar = "share of reconstructions nearer to a training image of the person than to a held-out one"

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        pixels, features = self.names
        held_out = evidence.held_out
        if held_out is None or evidence.held_out_features is None:
            return tuple(self._missing(name, evidence, "no held-out private images") for name in self.names)
        by_feature = (evidence.features, evidence.private_features, evidence.held_out_features)
        return (
            self._compared(pixels, evidence, held_out, _flat(evidence, held_out)),
            self._compared(features, evidence, held_out, by_feature),
        )

    def _compared(self, name: str, evidence: Evidence, held_out: Dataset, views: tuple[Tensor, ...]) -> Measurement:
        if len({view.shape[1:] for view in views}) > 1:
            return self._missing(name, evidence, "reconstructions and private images differ in shape")
        if not all(bool(view.isfinite().all()) for view in views):
            return self._missing(name, evidence, "a feature is not finite")
        labels = (evidence.labels, evidence.private.labels, held_out.labels)
        closer, rows = compare_sets(*(item for pair in zip(views, labels, strict=True) for item in pair))
        if not len(rows):
            return self._missing(name, evidence, "no attacked class has both training and held-out images")
        means = by_class(closer.numpy(), evidence.labels[rows].cpu().numpy(), evidence.seeds[rows].cpu().numpy())
        values, weights = tables(means)
        interval = share_interval(values, weights=weights)
        return Measurement(
            name=name,
            protocol=self._protocol(name, evidence),
            value=float(closer.mean()),
            unit=self.unit,
            count=len(rows),
            counted="images",
            interval=_with_test(interval, means) if interval else None,
            reason=None if interval else TOO_FEW,
            leak_grows=True,
            per_class=means,
        )

    def _missing(self, name: str, evidence: Evidence, reason: str) -> Measurement:
        return Measurement(
            name=name,
            protocol=self._protocol(name, evidence),
            value=None,
            unit=self.unit,
            count=len(evidence.labels),
            counted="images",
            reason=reason,
            leak_grows=True,
        )

    def _protocol(self, name: str, evidence: Evidence) -> str:
        judge = "pixels" if name == self.names[0] else evidence.judge.name
        return f"{name}/image/all/none@{judge}#l2-train-vs-test-equal-size"


def compare_sets(
    found: Shaped[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    train: Shaped[Tensor, "t d"],
    train_labels: Int[Tensor, " t"],
    held_out: Shaped[Tensor, "h d"],
    held_out_labels: Int[Tensor, " h"],
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
    """How surely the training set is nearer, and the row of each reconstruction whose class has both sets."""
    closer, kept = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.int64)]
    for label in labels.unique():
        mine, near, far = ((of == label).nonzero().squeeze(1) for of in (labels, train_labels, held_out_labels))
        if len(near) and len(far):
            apart = [
                torch.cdist(found[mine].double(), pool.double(), compute_mode="donot_use_mm_for_euclid_dist")
                for pool in (train[near], held_out[far])
            ]
            closer.append(first_is_closer(*apart).cpu())
            kept.append(mine.cpu())
    return torch.cat(closer), torch.cat(kept)


def first_is_closer(first: Float[Tensor, "n a"], second: Float[Tensor, "n b"]) -> Float[Tensor, " n"]:
    """The chance that the least of `first` is below the least of `second`, a tie counting half.

    The larger of the two is thinned to the size of the smaller one; the chance is over the subset that is kept.
    """
    if first.shape[1] < second.shape[1]:
        return 1 - first_is_closer(second, first)
    bar, kept = second.amin(dim=1, keepdim=True), second.shape[1]
    no_nearer, farther = ((first >= bar).sum(dim=1), (first > bar).sum(dim=1))
    return 1 - (_all_from(no_nearer, first.shape[1], kept) + _all_from(farther, first.shape[1], kept)) / 2


def sign_test(means: tuple[ClassValue, ...]) -> tuple[int, int, float]:
    """People whose mean lies above one half, people whose mean differs from it, and the one-sided exact p value."""
    values, weights = tables(means)
    people = (values * weights).sum(axis=0, where=weights > 0) / weights.sum(axis=0)
    above, below = int((people > EVEN + ROUNDING).sum()), int((people < EVEN - ROUNDING).sum())
    decided = above + below
    p = float(stats.binomtest(above, decided, EVEN, alternative="greater").pvalue) if decided else 1.0
    return above, decided, p


def _with_test(interval: Interval, means: tuple[ClassValue, ...]) -> Interval:
    above, decided, p = sign_test(means)
    method = f"{interval.method}; sign test over people: {above} of {decided} above one half, p = {p:.3g}"
    return Interval(low=interval.low, high=interval.high, level=interval.level, method=method)


def _all_from(good: Int[Tensor, " n"], size: int, drawn: int) -> Float[Tensor, " n"]:
    """The chance that `drawn` of `size` items, drawn without replacement, are all among the `good` ones."""
    total, enough = torch.tensor(float(size), dtype=torch.float64, device=good.device), good >= drawn
    many = torch.where(enough, good, size).double()
    chance = (_log_ways(many, drawn) - _log_ways(total, drawn)).exp()
    return torch.where(enough, chance, 0.0)


def _log_ways(size: Tensor, drawn: int) -> Tensor:
    """log of size! / (size - drawn)!, the ordered draws."""
    return torch.lgamma(size + 1) - torch.lgamma(size - drawn + 1)


def _flat(evidence: Evidence, held_out: Dataset) -> tuple[Tensor, ...]:
    """8-bit pixels as rows; they become numbers class by class, because all at once would not fit into memory."""
    return tuple(pixels.flatten(1) for pixels in (evidence.pixels, evidence.private.pixels, held_out.pixels))
