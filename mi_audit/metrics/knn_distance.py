"""KNN distance: how near reconstructions come to the private images of the class they claim to show."""

from dataclasses import dataclass
from typing import ClassVar

from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import Measurement
from mi_audit.nn.distances import nearest_of_class
from mi_audit.nn.intervals import TOO_FEW, by_class, mean_interval, tables


@dataclass(frozen=True, kw_only=True)
class KNNDistance(Metric):
    """`mean over images x of min over private training images t of the class, |f(x) - f(t)|^2`.

    f is the input of the evaluator's last layer, not normalised, so that values of different evaluators cannot be
    compared; the protocol names evaluator and dimension. All reconstructions count, not only those that the evaluator
    accepts. Smaller is more leakage.

    Raises:
        DataError: An attacked class has no private image.
    """

    names: ClassVar = ("knn_l2sq_min",)
    unit: ClassVar = "squared feature distance"
    summary: ClassVar = "squared distance to the nearest private image of the class, in evaluator features"

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        near = nearest_of_class(
            evidence.features, evidence.labels, evidence.private_features, evidence.private.labels
        ).double()
        count, width = evidence.features.shape
        rows = by_class(near.cpu().numpy(), evidence.labels.cpu().numpy(), evidence.seeds.cpu().numpy())
        reason = "no reconstruction" if not count else None if near.isfinite().all() else "a feature is not finite"
        interval = None
        if reason is None:
            values, weights = tables(rows)
            interval = mean_interval(values, weights=weights)
        return (
            Measurement(
                name=self.names[0],
                protocol=f"{self.names[0]}/image/all/none@{evidence.judge.name}#train-d{width}-raw",
                value=None if reason else float(near.mean()),
                unit=self.unit,
                count=count,
                counted="images",
                interval=interval,
                reason=reason or (None if interval else TOO_FEW),
                leak_grows=False,
                per_class=() if reason else rows,
            ),
        )
