"""MID: let only a few noisy numbers per image reach the logits, and charge for what they tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from mi_audit.core.defense import Defense, Edit, Slot, Step, Term
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.types import Images
from mi_audit.nn import heads

SILENT = 0.05  # nats of divergence that tell no two people apart


@dataclass(frozen=True, kw_only=True)
class MID(Defense):
    """Bound the mutual information between image and prediction by a variational bottleneck before the logits.

    `E[CE] + weight * E[KL(N(mean, deviation^2) || N(0, 1))]`; the divergence is in nats and summed over the code, and
    is an upper bound of what the code tells about the image (Alemi et al., "Deep Variational Information Bottleneck").

    Attributes:
        weight: Of the divergence (beta). Public code uses 0.001 to 0.1; accuracy breaks down suddenly when too large.
        code: Numbers that reach the last layer; None is half the features, rounded down.
        eval_noise: Sample in evaluation, too, as public code does: answers are then random, and an attacker averages.

    Raises:
        ConfigError: A number is out of range, or the network does not end in one linear layer.
    """

    paper: ClassVar = Paper(
        title="Improving Robustness to Model Inversion Attacks via Mutual Information Regularization",
        authors="Wang et al.",
        venue="AAAI 2021",
        url="https://arxiv.org/abs/2009.05241",
    )
    smoke: ClassVar = {}
    kind: ClassVar = "information"
    adaptive: ClassVar = (
        "attack the mean of the code, without noise; where the model draws noise when asked, average the gradients of "
        "many answers to the same image"
    )
    slots: ClassVar = frozenset({Slot.HEAD, Slot.TERM})
    untested: ClassVar = {
        "negls": "one holds the code of an image near zero, the other drives the logits apart",
        "atat": "the noise of the code makes its inner search random",
    }
    deviations: ClassVar = (
        "In evaluation the code is its mean, so that a model answers the same question the same way; public code draws "
        "noise there, too (eval_noise=true).",
        "The bottleneck replaces the last linear layer only: a batch norm before it, which public code takes out of "
        "VGG-16, stays.",
    )

    weight: float = 0.01
    code: int | None = None
    eval_noise: bool = False

    def __post_init__(self) -> None:
        require_finite(self)
        if self.weight <= 0:
            raise ConfigError(f"expected weight > 0, got {self.weight}; set for example mid.weight=0.01")
        if self.code is not None and self.code < 1:
            raise ConfigError(f"expected code >= 1, got {self.code}; leave mid.code out for half the features")

    def edits(self, net: nn.Module, example: Tensor) -> Sequence[Edit]:
        seat = heads.find_seat(net, example)
        code = self.code or max(1, seat.width // 2)
        return ({"edit": "bottleneck-head", "layer": seat.name, "code": code, "eval_noise": self.eval_noise},)

    def taps(self, model: nn.Module, example: Images) -> Sequence[str]:
        del example
        return tuple(
            f"{name}.encode" for name, module in model.named_modules() if isinstance(module, heads.BottleneckHead)
        )

    def term(self, step: Step) -> Term:
        (encoded,) = step.taps.values()
        divergence = heads.divergence(encoded)
        start = divergence.new_full((), encoded.shape[1] // 2 * heads.WIDE_OPEN)
        return Term(self.weight * divergence, {"divergence": divergence.detach(), "divergence_at_start": start})

    def shortfall(self, notes: Mapping[str, float]) -> str:
        """The bottleneck is closed, or has not closed half the way."""
        told, start = notes.get("divergence"), notes.get("divergence_at_start", 0.0)
        if told is None or SILENT <= told <= start / 2:
            return ""
        if told < SILENT:
            return (
                f"the code tells next to nothing about an image (divergence {told:.3f} nats), so the model cannot tell "
                f"people apart; lower mid.weight, which is {self.weight:g}"
            )
        return (
            f"the bottleneck is still open (divergence {told:.1f} nats, a fresh one has {start:.1f}), so hardly "
            f"anything is held back; raise the epochs or mid.weight, which is {self.weight:g}"
        )
