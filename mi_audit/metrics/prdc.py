"""PRDC: precision, recall, density and coverage of the reconstructions on the manifold of the private images."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import Measurement

LEAST = 50  # images per set, below which nearest-neighbour balls in feature space are noise
CHUNK = 1024  # rows of the distance matrix held in memory at once

Rows = Float64[Tensor, "n d"]


class Scores(NamedTuple):
    """Shares in [0, 1], except that density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True, kw_only=True)
class PRDC(Metric):
    """The four scores of Naeem et al. (ICML 2020) with k = 3, pooled over the attacked classes, in evaluator features.

    A ball reaches from an image to its k-th nearest neighbour in its own set; to lie inside means strictly nearer.
    Precision is the share of reconstructions inside any ball of a private image, density the mean number of balls
    around a reconstruction divided by k, recall the share of private images inside any ball of a reconstruction, and
    coverage the share of private images with a reconstruction inside their ball. These are properties of two sets:
    there is no interval, they decide nothing, and below 50 images in a set there is no value.
    """

    names: ClassVar = ("precision_k3", "recall_k3", "density_k3", "coverage_k3")
    unit: ClassVar = "ratio"
    summary: ClassVar = "precision, recall, density and coverage of the set of reconstructions, in evaluator features"
    neighbours: ClassVar = 3

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        found, private = evidence.features, evidence.private_features
        sizes = f"{len(found)} reconstructions, {len(private)} private images"
        scores: Scores | tuple[None, ...] = (None,) * len(self.names)
        if min(len(found), len(private)) < LEAST:
            reason = f"{LEAST} images are needed on each side, got {sizes}"
        elif not (found.isfinite().all() and private.isfinite().all()):
            reason = "a feature is not finite"
        else:
            scores = prdc_scores(private, found, self.neighbours)
            reason = f"no interval (a comparison of sets): {sizes}, d = {found.shape[1]} features"
        return tuple(
            Measurement(
                name=name,
                protocol=f"{name}/set/all/none@{evidence.judge.name}#union-train-pooled-d{found.shape[1]}-raw",
                value=score,
                unit=self.unit,
                count=len(found),
                counted="images",
                reason=reason,
                leak_grows=None,
            )
            for name, score in zip(self.names, scores, strict=True)
        )


def prdc_scores(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], k: int) -> Scores:
    """Precision, recall, density and coverage of `fake` with regard to `real`; both need more than `k` rows."""
    real, fake = real.detach().cpu().double(), fake.detach().cpu().double()
    real_radius, fake_radius = _radii(real, k), _radii(fake, k)
    balls = []  # of how many private images each reconstruction lies in
    recalled: Bool[Tensor, " r"] = torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full_like(real_radius, torch.inf)
    for rows, radius in zip(fake.split(CHUNK), fake_radius.split(CHUNK), strict=True):
        apart = _squared(rows, real)
        balls.append((apart < real_radius).sum(dim=1))
        recalled |= (apart < radius[:, None]).any(dim=0)
        nearest = torch.minimum(nearest, apart.amin(dim=0))
    around = torch.cat(balls).double()
    return Scores(
        precision=float((around > 0).double().mean()),
        recall=float(recalled.double().mean()),
        density=float(around.mean() / k),
        coverage=float((nearest < real_radius).double().mean()),
    )


def _radii(rows: Rows, k: int) -> Float64[Tensor, " n"]:
    """The squared distance of every row to its k-th nearest other row."""
    return torch.cat([_squared(part, rows).kthvalue(k + 1, dim=1).values for part in rows.split(CHUNK)])


def _squared(first: Float64[Tensor, "n d"], second: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """Squared Euclidean distances; double precision affords the product form."""
    products = first @ second.T
    return (first.square().sum(dim=1)[:, None] + second.square().sum(dim=1) - 2 * products).clamp(min=0)
