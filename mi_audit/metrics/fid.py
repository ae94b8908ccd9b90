"""FID: how much the set of reconstructions looks like the set of private images."""

import math
from dataclasses import dataclass
from typing import ClassVar

from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import Measurement
from mi_audit.nn.frechet import frechet_distance


@dataclass(frozen=True, kw_only=True)
class FID(Metric):
    """The Frechet distance between reconstructions and private training images of the attacked classes.

    Features are the evaluator's, hence the name `fid_evaluator`: it is not the FID of the Inception network of the
    image-synthesis literature and must not be compared with one. It measures how real the pictures look as a set, not
    whether a person can be recognised, and is biased upward by small samples; so it has no interval, decides nothing,
    and its reason states both counts.
    """

    names: ClassVar = ("fid_evaluator",)
    unit: ClassVar = "squared feature distance"
    summary: ClassVar = "Frechet distance of reconstructions to the private images, in evaluator features"

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        count, width = evidence.features.shape
        private = len(evidence.private_features)
        distance = frechet_distance(evidence.features, evidence.private_features)
        if min(count, private) < 2:
            reason = f"two images are needed on each side, got {count} reconstructions and {private} private images"
        elif math.isnan(distance):
            reason = "a feature is not finite"
        else:
            bias = "biased: fewer than 2d" if min(count, private) < 2 * width else "a distance of sets"
            reason = f"no interval ({bias}): {count} reconstructions, {private} private images, d = {width} features"
        return (
            Measurement(
                name=self.names[0],
                protocol=f"{self.names[0]}/set/all/none@{evidence.judge.name}#train-d{width}-raw",
                value=None if math.isnan(distance) else distance,
                unit=self.unit,
                count=count,
                counted="images",
                reason=reason,
                leak_grows=None,
            ),
        )
