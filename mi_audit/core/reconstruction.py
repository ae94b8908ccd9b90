"""What attacks return."""

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Curve:
    """The mean loss over all latents of one stage of an attack.

    Attributes:
        stage: Name of the stage.
        steps: Step of each point.
        losses: Mean identity loss at that step.
    """

    stage: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reconstructions:
    """`n` images, the class each claims to show, and how sure the attacker is.

    Attributes:
        images: In [0, 1].
        labels: Claimed class.
        confidence: The attacker's own ranking by target outputs; never the evaluator's.
        curves: Loss curves, for the report.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    curves: tuple[Curve, ...] = field(default=())
