"""Diversity: how much the reconstructions of one person differ; fifty copies of one picture are one leak."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import ClassValue, Measurement
from mi_audit.core.types import Features
from mi_audit.nn.intervals import TOO_FEW, mean_interval, tables


@dataclass(frozen=True, kw_only=True)
class Diversity(Metric):
    """`mean over pairs of pictures of one class and seed of 1 - cos(f(x), f(y))`, then the mean over classes and seeds.

    f is the input of the evaluator's last layer. 0 means copies of one picture, 1 unrelated features. It says nothing
    about leakage by itself: an attack that found nothing may be as diverse as one that found everything.
    """

    names: ClassVar = ("diversity_1cos",)
    unit: ClassVar = "cosine distance"
    summary: ClassVar = "mean pairwise 1 - cosine among the reconstructions of one class, in evaluator features"

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        count, width = evidence.features.shape
        rows: tuple[ClassValue, ...] = ()
        value, interval = None, None
        if not evidence.features.isfinite().all():
            reason: str | None = "a feature is not finite"
        else:
            rows = _pairwise(evidence.features, evidence.labels, evidence.seeds)
            reason = None if rows else "no class has two reconstructions under one seed"
        if rows:
            values, _ = tables(rows)
            value, interval = float(np.nanmean(values)), mean_interval(values)
        return (
            Measurement(
                name=self.names[0],
                protocol=f"{self.names[0]}/identity/all/none@{evidence.judge.name}#within-seed-d{width}",
                value=value,
                unit=self.unit,
                count=count,
                counted="images",
                interval=interval,
                reason=reason or (None if interval else TOO_FEW),
                leak_grows=None,
                per_class=rows,
            ),
        )


def spread(features: Features) -> float:
    """The mean of 1 - cos over all pairs of rows; at least two are needed."""
    units = F.normalize(features.double(), dim=1)
    alike = units.sum(dim=0).square().sum() - units.square().sum()  # over ordered pairs of different rows
    return float(1 - alike / (len(units) * (len(units) - 1)))


def _pairwise(features: Features, labels: Tensor, seeds: Tensor) -> tuple[ClassValue, ...]:
    cells, place = torch.stack([labels, seeds], dim=1).unique(dim=0, return_inverse=True)
    members = [features[place == cell] for cell in range(len(cells))]
    return tuple(
        ClassValue(label=int(label), seed=int(seed), value=spread(rows), count=len(rows))
        for (label, seed), rows in zip(cells.tolist(), members, strict=True)
        if len(rows) > 1
    )
