"""Attack accuracy: the share of reconstructions that the evaluator assigns to the class they claim to show."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from mi_audit.core.errors import TargetError
from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import Measurement
from mi_audit.core.types import Labels, Logits
from mi_audit.nn.intervals import TOO_FEW, by_class, share_interval, tables


@dataclass(frozen=True, kw_only=True)
class AttackAccuracy(Metric):
    """`mean over images of 1[class in top-k of the evaluator]`, for k = 1 and 5, over all reconstructions.

    Nothing is selected by the evaluator. The interval resamples identities (and seeds), because pictures of one person
    succeed or fail together. An evaluator that shares the target's mistakes inflates it: read it beside the control.

    Raises:
        TargetError: The evaluator's logits are not finite.
    """

    names: ClassVar = ("attack_acc1", "attack_acc5")
    unit: ClassVar = "share"
    summary: ClassVar = "share of reconstructions that the evaluator assigns to the attacked class, top-1 and top-5"

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        if not evidence.logits.isfinite().all():
            raise TargetError(
                f"expected finite logits from the evaluator {evidence.judge.name}, got NaN or infinity; train it again"
            )
        return tuple(self._top(k, name, evidence) for k, name in zip((1, 5), self.names, strict=True))

    def _top(self, k: int, name: str, evidence: Evidence) -> Measurement:
        classes, images = evidence.logits.shape[1], len(evidence.labels)
        trivial = f"top-{k} of {classes} classes is always right" if k >= classes else None
        reason = trivial or ("no reconstruction" if not images else None)
        hits = among_best(evidence.logits, evidence.labels, k).double()
        rows = by_class(hits.cpu().numpy(), evidence.labels.cpu().numpy(), evidence.seeds.cpu().numpy())
        interval = None
        if reason is None:
            values, weights = tables(rows)
            interval = share_interval(values, weights=weights)
        return Measurement(
            name=name,
            protocol=f"attacc{k}/image/all/none@{evidence.judge.name}",
            value=None if reason else float(hits.mean()),
            unit=self.unit,
            count=images,
            counted="images",
            interval=interval,
            reason=reason or (None if interval else TOO_FEW),
            leak_grows=True,
            per_class=() if reason else rows,
        )


def among_best(logits: Logits, labels: Labels, k: int) -> Bool[Tensor, " b"]:
    """Whether fewer than `k` other classes score at least as high as the label; a tie counts against it."""
    own = logits.gather(1, labels.long()[:, None])
    return torch.sum(logits >= own, dim=1) <= k
