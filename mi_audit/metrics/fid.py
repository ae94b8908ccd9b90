"""FID: how much the set of reconstructions looks like the set of private images."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import Measurement
from mi_audit.core.types import Features
from mi_audit.nn.frechet import frechet_distance
from mi_audit.store.inception import inception_features


class _Sets(NamedTuple):
    """Features of both sets, and what to call a distance between them."""

    name: str
    extractor: str
    found: Features
    private: Features


@dataclass(frozen=True, kw_only=True)
class FID(Metric):
    """The Frechet distance between reconstructions and private training images of the attacked classes.

    With pytorch-fid and its weights on the machine, features are those of its Inception and the name is `fid`. Else
    they are the evaluator's and the name is `fid_evaluator`: the two must not be compared. It measures how real the
    pictures look as a set, not whether a person can be recognised, and is biased upward by small samples; so it has no
    interval, decides nothing, and its reason states both counts.
    """

    names: ClassVar = ("fid_evaluator",)
    unit: ClassVar = "squared feature distance"
    summary: ClassVar = "Frechet distance of reconstructions to the private images, in evaluator features"

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        sets = _features(evidence)
        count, width = sets.found.shape
        private = len(sets.private)
        distance = frechet_distance(sets.found, sets.private)
        if min(count, private) < 2:
            reason = f"two images are needed on each side, got {count} reconstructions and {private} private images"
        elif math.isnan(distance):
            reason = "a feature is not finite"
        else:
            bias = "biased: fewer than 2d" if min(count, private) < 2 * width else "a distance of sets"
            reason = f"no interval ({bias}): {count} reconstructions, {private} private images, d = {width} features"
        return (
            Measurement(
                name=sets.name,
                protocol=f"{sets.name}/set/all/none@{sets.extractor}#train-d{width}-raw",
                value=None if math.isnan(distance) else distance,
                unit=self.unit,
                count=count,
                counted="images",
                reason=reason,
                leak_grows=None,
            ),
        )


def _features(evidence: Evidence) -> _Sets:
    inception = inception_features(evidence.device)
    if inception is None:
        return _Sets("fid_evaluator", evidence.judge.name, evidence.features, evidence.private_features)
    found, private = (inception(pixels.float() / 255) for pixels in (evidence.pixels, evidence.private.pixels))
    return _Sets("fid", "inception-2015-12-05", found, private)
