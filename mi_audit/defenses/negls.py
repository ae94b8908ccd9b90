"""NegLS: push the logits of wrong classes down without end by label smoothing with a negative weight."""

from dataclasses import dataclass
from typing import ClassVar

from mi_audit.core.defense import MAIN, MASKING, Defense, Moment, Slot
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.types import Labels, Logits, Scalar


@dataclass(frozen=True, kw_only=True)
class NegLS(Defense):
    """Train on `(1 - alpha) CE(y) + alpha mean over classes of CE(c)` with alpha < 0, after plain cross-entropy.

    The loss has no lower bound: the model gets ever surer, and the gradients that an attacker follows become unstable.
    That hides what the model knows more than it takes it away. Probabilities are no longer calibrated. Other phases
    than the main one keep their loss.

    Attributes:
        alpha: Final weight of the smoothing; the schedule is `smoothing`.
        allow_positive: Accept alpha > 0, which makes inversion easier: to show just that.

    Raises:
        ConfigError: `alpha` is out of range, or positive without permission.
    """

    paper: ClassVar = Paper(
        title="Be Careful What You Smooth For: Label Smoothing Can Be a Privacy Shield but Also a Catalyst for Model "
        "Inversion Attacks",
        authors="Struppek et al.",
        venue="ICLR 2024",
        url="https://arxiv.org/abs/2310.06549",
    )
    smoke: ClassVar = {}
    kind: ClassVar = "gradient-masking"
    adaptive: ClassVar = (
        "margin losses on logits with signed or rescaled gradients; attack from labels only; attack a copy trained "
        "with cross-entropy on the model's answers"
    )
    caution: ClassVar = f"Its probabilities are no longer calibrated: never read them as certainty. {MASKING}"
    slots: ClassVar = frozenset({Slot.LOSS})
    excludes: ClassVar = {"ca": "it lowers the confidence that negative smoothing raises without end"}
    deviations: ClassVar = (
        "The schedule, published for 100 epochs, keeps its shares of the training for any number; the last epoch "
        "always has the full weight.",
    )

    alpha: float = -0.05
    allow_positive: bool = False

    def __post_init__(self) -> None:
        require_finite(self)
        if not -1 < self.alpha < 1 or self.alpha == 0:
            raise ConfigError(f"expected alpha between -1 and 0, got {self.alpha}; set for example negls.alpha=-0.05")
        if self.alpha > 0 and not self.allow_positive:
            raise ConfigError(
                f"expected alpha < 0, got {self.alpha}, which makes a model leak more; set negls.alpha=-{self.alpha}, "
                "or negls.allow_positive=true to show that"
            )

    def in_force(self, epoch: int, epochs: int) -> bool:
        return smoothing(self.alpha, epoch, epochs) == self.alpha

    def objective(self, logits: Logits, labels: Labels, moment: Moment) -> Scalar | None:
        if moment.phase != MAIN:
            return None
        return smoothed_cross_entropy(logits, labels, smoothing(self.alpha, moment.epoch, moment.epochs))


def smoothing(alpha: float, epoch: int, epochs: int) -> float:
    """The weight in an epoch: 0 up to half of the training, then rising to half of `alpha`, then all of it.

    With `q = (epoch + 1) / epochs`, the share that is done after it: `alpha (2 q - 1)` between 1/2 and 3/4, `alpha`
    above. For 100 epochs these are the published numbers: 0 up to epoch 49, `alpha (epoch - 49) / 50` up to epoch 74.

    Args:
        alpha: Final weight.
        epoch: From 0.
        epochs: Their number.
    """
    done = epoch + 1
    if 4 * done > 3 * epochs:
        return alpha
    return alpha * max(0, 2 * done - epochs) / epochs


def smoothed_cross_entropy(logits: Logits, labels: Labels, alpha: float) -> Scalar:
    """`(1 - alpha) (-log p[label]) + alpha mean(-log p)`, mean over the batch, in single precision."""
    surprise = -logits.float().log_softmax(dim=1)
    named = surprise.gather(1, labels[:, None]).squeeze(1)
    return ((1 - alpha) * named + alpha * surprise.mean(dim=1)).mean()
