"""CA: move the most likely images away from the private ones by capping how sure a trained model gets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mi_audit.core.defense import MASKING, Defense, Moment, Phase, Slot, Step, Term
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.types import Labels, Logits, Scalar

PHASE = "confidence"


@dataclass(frozen=True, kw_only=True)
class CA(Defense):
    """After the main training, fine-tune a few epochs on `scale * p^power * log p`, p the probability of the label.

    The loss is smallest at `p = exp(-1 / power)`, 0.88 for 8, and rises again above: attacks that maximise p climb past
    the private images. Its gradient vanishes for p near 0, so that it can only follow a training with cross-entropy,
    and fades near 1, where a well-trained model stands. At too low a rate nothing moves and nothing is defended: watch
    `confidence`, the mean p, which is logged, fall towards the value above, and raise `lr` where it stays.

    Attributes:
        power: Exponent (b); larger leaves the model surer.
        scale: Factor (a); it only rescales the learning rate.
        epochs: Passes of the fine-tuning.
        lr: Its learning rate, with SGD, whatever the main phase used; the published one suits its large networks.

    Raises:
        ConfigError: A number is out of range.
    """

    paper: ClassVar = Paper(
        title="CALoR: Towards Comprehensive Model Inversion Defense",
        authors="Yu et al.",
        venue="arXiv 2024",
        url="https://arxiv.org/abs/2410.05814v2",
    )
    smoke: ClassVar = {"epochs": 1}
    kind: ClassVar = "gradient-masking"
    adaptive: ClassVar = (
        "aim at the confidence that the model was tuned to, |p - exp(-1 / power)|, instead of the largest; invert the "
        "features before the head; attack a copy trained on the model's answers"
    )
    caution: ClassVar = f"Its probabilities are lowered on purpose and no longer calibrated. {MASKING}"
    slots: ClassVar = frozenset({Slot.PHASE, Slot.TERM})
    only_notes: ClassVar = True
    untested: ClassVar = {
        "trap-mid": "the last phase lowers the confidence that the trapdoor was trained to",
        "dp-sgd": "its phase takes noise, too, and the confidence is not followed, for no budget covers logging it",
    }
    deviations: ClassVar = (
        "The rate falls to a tenth at 75 % and a hundredth at 90 % of the phase, in the released code after epochs 3 "
        "and 4 of 5; batch and augmentation are those of the main phase, there batches of 96 that are only mirrored.",
    )

    power: float = 8.0
    scale: float = 0.25
    epochs: int = 5
    lr: float = 2e-5

    def __post_init__(self) -> None:
        require_finite(self)
        if min(self.power, self.scale, self.lr) <= 0:
            raise ConfigError(
                f"expected power, scale and lr > 0, got {self.power}, {self.scale}, {self.lr}; for example ca.power=8"
            )
        if self.epochs < 1:
            raise ConfigError(f"expected epochs >= 1, got {self.epochs}; set ca.epochs or leave the method out")

    def phases(self) -> Sequence[Phase]:
        recipe = {"optimiser": "sgd", "schedule": "milestones", "lr": self.lr}
        return (Phase(name=PHASE, when="after", epochs=self.epochs, recipe=recipe, keep="last"),)

    def objective(self, logits: Logits, labels: Labels, moment: Moment) -> Scalar | None:
        if moment.phase != PHASE:
            return None
        return confidence_loss(logits, labels, self.power, self.scale)

    def shortfall(self, notes: Mapping[str, float]) -> str:
        """The confidence did not come half the way down from 1 to where the loss is smallest."""
        sure, aim = notes.get("confidence", 0.0), math.exp(-1 / self.power)
        if sure <= (1 + aim) / 2:
            return ""
        return (
            f"the model is still sure of its training images ({sure:.3f} on average, {aim:.2f} is aimed at), so hardly "
            f"anything is defended; raise ca.lr, which is {self.lr:g}"
        )

    def term(self, step: Step) -> Term | None:
        """Adds nothing; logs the confidence that the phase is to lower."""
        if step.moment.phase != PHASE:
            return None
        named = step.logits.detach().softmax(dim=1).gather(1, step.labels[:, None])
        return Term(step.logits.new_zeros(()), {"confidence": named.mean()})


def confidence_loss(logits: Logits, labels: Labels, power: float, scale: float) -> Scalar:
    """`scale * p^power * log p`, mean over the batch, at most 0, in single precision.

    Written as `exp(power * log p) * log p`, so that it and its gradient are 0, not NaN, for p = 0.
    """
    log_p = logits.float().log_softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    return (scale * (power * log_p).exp() * log_p).mean()
