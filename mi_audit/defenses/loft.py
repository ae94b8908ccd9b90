"""LoFt: squeeze the features through a few saturating numbers before the logits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from mi_audit.core.defense import MASKING, Defense, Edit, Slot
from mi_audit.core.errors import ConfigError
from mi_audit.core.paper import Paper
from mi_audit.nn.heads import find_seat


@dataclass(frozen=True, kw_only=True)
class LoFt(Defense):
    """Replace the last linear layer by `norm, linear to rank numbers, tanh, linear`, trained with plain cross-entropy.

    It does two things. The Jacobian of the logits has at most `rank` dimensions, so that they tell less about the
    image: information. And tanh saturates, so that the gradient that an attacker follows fades: masking, which a
    black-box attack does not notice. How much of its effect is which, only such an attack shows; it counts as masking.

    Attributes:
        rank: Numbers that reach the last layer; None is 50 from 200 classes on and else a quarter of the classes, at
            least 20. Of 20 classes or fewer nothing is squeezed then.
        norm: Of the features before: `batch` as published; `layer` or `none` where images must not mix in a batch.

    Raises:
        ConfigError: `rank` is not below classes and features, or the network does not end in one linear layer.
    """

    paper: ClassVar = Paper(
        title="Rank Matters: Understanding and Defending Model Inversion Attacks via Low-Rank Feature Filtering",
        authors="Yu et al.",
        venue="KDD 2026",
        url="https://arxiv.org/abs/2410.05814",
    )
    smoke: ClassVar = {"rank": 2}
    kind: ClassVar = "gradient-masking"
    adaptive: ClassVar = (
        "invert the features before the head, or the numbers before tanh, instead of the logits; use losses on logits "
        "and signed gradients; attack as a black box"
    )
    caution: ClassVar = MASKING
    slots: ClassVar = frozenset({Slot.HEAD})
    deviations: ClassVar = (
        "The rank follows the number of classes; the released scripts set 50 for 530 classes and more.",
        "A rank that squeezes nothing is refused; the released code accepts it.",
        "The backbone starts from any public weights, not from one large face data set.",
    )

    rank: int | None = None
    norm: Literal["batch", "layer", "none"] = "batch"

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"expected rank >= 1, got {self.rank}; leave loft.rank out to follow the classes")

    def conflicts(self, others: Mapping[str, Defense]) -> str:
        """A batch norm that trains mixes the images of a batch, so that none has a gradient of its own."""
        private = [name for name, other in others.items() if Slot.STEP in other.slots]
        if not private or self.norm != "batch":
            return ""
        return (
            f"expected a head that takes images one by one with {private[0]}, got loft with a batch norm, in which no "
            "image has a gradient of its own; set loft.norm=layer"
        )

    def edits(self, net: nn.Module, example: Tensor) -> Sequence[Edit]:
        seat = find_seat(net, example)
        rank = self.rank or default_rank(seat.num_classes)
        if rank >= min(seat.width, seat.num_classes):
            raise ConfigError(
                f"expected a rank below {seat.num_classes} classes and {seat.width} features, got {rank}, which "
                f"squeezes nothing; set loft.rank={min(seat.width, seat.num_classes) // 2 or 1} or use another defense"
            )
        return ({"edit": "low-rank-head", "layer": seat.name, "rank": rank, "norm": self.norm},)


def default_rank(num_classes: int) -> int:
    """50 from 200 classes on, else a quarter of the classes, rounded up, and at least 20."""
    return 50 if num_classes >= 200 else max(20, math.ceil(num_classes / 4))
