"""Literature profiles: numbers as published code computes them, to compare with papers and with nothing else."""

import statistics
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import Measurement

BATCH = 60  # identities per batch in KED-MI's script
NEIGHBOURS = 3


@dataclass(frozen=True, kw_only=True)
class Literature(Metric):
    """Two published conventions, computed from the same pictures. Comparison-only: no interval, and no gate uses them.

    `attack_acc1_variance_kedmi` is what KED-MI (Chen et al., ICCV 2021) prints behind its accuracy: over batches of 60
    identities, the mean of `statistics.variance` of the accuracies of the seeds, so a variance of fractions that knows
    nothing of the spread between people. KED-MI has one image per identity and seed, and its five seeds are five
    samples of one search; here they are searches of their own.

    `precision_nearest_k3` is what PPA (Struppek et al., ICML 2022) calls precision: class by class, the share of
    reconstructions inside the ball of the one nearest private image, which reaches to its third neighbour; then the
    mean over classes. It is lower than the precision of the union of balls. Features are those of this evaluator, and
    classes with fewer than four private images are left out.
    """

    names: ClassVar = ("attack_acc1_variance_kedmi", "precision_nearest_k3")
    unit: ClassVar = "ratio"
    summary: ClassVar = "published conventions of KED-MI and PPA, comparison-only (only when named)"
    default: ClassVar = False

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        return self._variance(evidence), self._precision(evidence)

    def _variance(self, evidence: Evidence) -> Measurement:
        found = seed_variance((evidence.logits.argmax(dim=1) == evidence.labels).double(), evidence)
        reason = "comparison-only: the variance of seed accuracies" if found is not None else "two seeds are needed"
        protocol = f"{self.names[0]}/image/all/none@{evidence.judge.name}#kedmi-2021-b{BATCH}"
        return self._measurement(self.names[0], protocol, found, reason, evidence)

    def _precision(self, evidence: Evidence) -> Measurement:
        views = (evidence.features, evidence.private_features)
        found, reason = None, "a feature is not finite"
        if all(bool(view.isfinite().all()) for view in views):
            found = precision_nearest(evidence)
            reason = "comparison-only: the ball of the nearest private image" if found is not None else _TOO_SMALL
        protocol = f"{self.names[1]}/image/all/none@{evidence.judge.name}#ppa-2022-d{views[0].shape[1]}"
        return self._measurement(self.names[1], protocol, found, reason, evidence)

    def _measurement(
        self, name: str, protocol: str, value: float | None, reason: str, evidence: Evidence
    ) -> Measurement:
        return Measurement(
            name=name,
            protocol=protocol,
            value=value,
            unit=self.unit,
            count=len(evidence.labels),
            counted="images",
            reason=reason,
            leak_grows=None,
        )


_TOO_SMALL = f"no attacked class has {NEIGHBOURS + 1} private images"


def seed_variance(hits: Float[Tensor, " n"], evidence: Evidence) -> float | None:
    """The mean over batches of identities of the variance of the seeds' accuracies; None without two seeds."""
    variances = []
    for batch in evidence.labels.unique().split(BATCH):
        inside = torch.isin(evidence.labels, batch)
        seeds = evidence.seeds[inside].unique().tolist()
        shares = [float(hits[inside & (evidence.seeds == seed)].mean()) for seed in seeds]
        if len(shares) > 1:
            variances.append(statistics.variance(shares))
    return statistics.fmean(variances) if variances else None


def precision_nearest(evidence: Evidence) -> float | None:
    """The mean over classes of the share of reconstructions inside the ball of the nearest private image."""
    shares = []
    for label in evidence.labels.unique():
        found = evidence.features[evidence.labels == label].double()
        private = evidence.private_features[evidence.private.labels == label].double()
        if len(private) > NEIGHBOURS:
            shares.append(float(_inside_nearest(found, private).double().mean()))
    return statistics.fmean(shares) if shares else None


def _inside_nearest(found: Float[Tensor, "n d"], private: Float[Tensor, "m d"]) -> Tensor:
    exact = "donot_use_mm_for_euclid_dist"
    radius = torch.cdist(private, private, compute_mode=exact).kthvalue(NEIGHBOURS + 1, dim=1).values
    near = torch.cdist(found, private, compute_mode=exact).min(dim=1)
    return near.values < radius[near.indices]
