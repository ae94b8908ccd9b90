"""Verification by similarity: is the person in this picture one of those in these photographs?"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_audit.core.types import Features, Labels, PerSample
from mi_audit.nn.intervals import clopper_pearson

RIDGE = 1e-3  # of the largest within-class variance: what no public picture varied in is not blown up without limit
ROWS = 256  # compared with all references at once
ONE_SIDED_95 = 0.90  # two-sided level whose ends are the one-sided 95 % bounds


def similarity_to_class(
    features: Features, labels: Labels, references: Float[Tensor, "r d"], reference_labels: Int[Tensor, " r"]
) -> PerSample:
    """The largest cosine between each row and a reference of its own class; minus infinity when the class has none.

    Args:
        features: Of unit length.
        labels: Class that each row claims to show.
        references: Of unit length.
        reference_labels: Class of each reference.
    """
    if not len(references):
        return features.new_full((len(features),), -torch.inf)
    parts = [
        (part @ references.T).masked_fill(claimed[:, None] != reference_labels, -torch.inf).amax(dim=1)
        for part, claimed in zip(features.split(ROWS), labels.split(ROWS), strict=True)
    ]
    return torch.cat(parts)


def strangers(
    labels: Labels, classes: Int[Tensor, " k"], generator: torch.Generator
) -> tuple[Labels, Bool[Tensor, " b"]]:
    """A class out of `classes` for every row that is not the row's own, and for which rows there is one.

    One claim per row, so that the trials are as independent as the pictures. `classes` are ascending and distinct.
    """
    place = torch.searchsorted(classes, labels)
    own = classes[place.clamp_max(len(classes) - 1)] == labels
    choices = len(classes) - own.int()
    drawn = (torch.rand(len(labels), generator=generator) * choices).long()
    drawn += own & (drawn >= place)
    return classes[drawn.clamp_max(len(classes) - 1)], choices > 0


def threshold_for(impostors: PerSample, rate: float) -> float:
    """The smallest threshold whose false acceptance rate is at most `rate` with 95 % confidence.

    A picture is accepted above it. It is an order statistic of the impostor scores: with `a` of `n` scores above it
    the rate is at most the exact one-sided bound for `a` of `n`, whatever their distribution (Wilks, "Determination of
    sample sizes for setting tolerance limits", 1941), so no second sample is needed. With too few trials for any bound
    below `rate` it is the largest score.
    """
    ordered, n = impostors.sort(descending=True).values, len(impostors)
    allowed = 0
    while allowed + 1 < n and clopper_pearson(allowed + 1, n, ONE_SIDED_95)[1] <= rate:
        allowed += 1
    return float(ordered[allowed])


def first_of_class(labels: Labels, counts: Int[Tensor, " k"]) -> Int[Tensor, " m"]:
    """Rows of the first `counts[c]` occurrences of every class c, in row order."""
    order = labels.argsort(stable=True)
    grouped = labels[order]
    place = torch.arange(len(labels)) - torch.searchsorted(grouped, grouped)
    return order[place < counts[grouped]].sort().values


def within_class_whitening(features: Features, labels: Labels) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean and matrix of the map `(f - mean) @ matrix` that makes pictures of one class vary alike in all directions.

    What varies between pictures of one person counts less in the cosine and what does not counts more: within-class
    covariance normalisation (Hatch, Kajarekar & Stolcke, Interspeech 2006), learned here on other people.
    """
    wide = features.double()
    classes, place = labels.unique(return_inverse=True)
    sums = wide.new_zeros(len(classes), wide.shape[1]).index_add_(0, place, wide)
    own = (sums / place.bincount()[:, None])[place]
    spread = (wide - own).T @ (wide - own) / len(wide)
    variances, axes = torch.linalg.eigh(spread)
    scale = (variances.clamp_min(0) + RIDGE * variances[-1].clamp_min(1e-12)).rsqrt()
    return wide.mean(dim=0).float(), (axes * scale).float()
