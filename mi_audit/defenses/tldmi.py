"""TL-DMI: let only the last layers learn from the private data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mi_audit.core.defense import Defense, Phase, Slot
from mi_audit.core.errors import ConfigError
from mi_audit.core.paper import Paper
from mi_audit.core.types import Images
from mi_audit.nn import freezing


@dataclass(frozen=True, kw_only=True)
class TLDMI(Defense):
    """Start from public weights, freeze the first units there, and fine-tune the rest with plain cross-entropy.

    `min over theta_C of E[CE(f(x; theta_public, theta_C), y)]`: the frozen layers carry no private information. Only
    parameters that require a gradient belong in the optimiser.

    Attributes:
        freeze: Which part, in the grammar of `nn.freezing`; `80%` of the units in depth is close to the paper's cuts.
        head_epochs: Epochs in which the fresh head, all of it where another defense replaced it, learns alone before
            the rest of the trainable part joins it, so that the gradients of a random head do not spoil public
            weights. They come out of the main phase's.

    Raises:
        ConfigError: `freeze` is not in the grammar, the network has no such part, or `head_epochs` is negative.
    """

    paper: ClassVar = Paper(
        title="Model Inversion Robustness: Can Transfer Learning Help?",
        authors="Ho et al.",
        venue="CVPR 2024",
        url="https://arxiv.org/abs/2405.05588",
    )
    smoke: ClassVar = {}
    kind: ClassVar = "information"
    adaptive: ClassVar = (
        "average gradients over 20 to 50 random views of the image; with the public weights at hand, attack the "
        "difference between the features of this model and of the public one"
    )
    slots: ClassVar = frozenset({Slot.FREEZE, Slot.PHASE})
    needs_public_init: ClassVar = True
    deviations: ClassVar = (
        "The stem is frozen with the first unit; a misspelt attribute leaves it trainable in the released code.",
        "Batch norms of frozen units stay in eval mode, so that their statistics do not drift to the private data.",
        "Zero units means none for every network; the released code then freezes all of VGG-16.",
        "The cut is 80 % of the units unless it is given; the paper has one per network, which is printed beside it.",
        "The optimiser sees trainable parameters only, so that no momentum of frozen ones is left over.",
    )

    freeze: str = "80%"
    head_epochs: int = 0

    def __post_init__(self) -> None:
        freezing.parse(self.freeze)
        if self.head_epochs < 0:
            raise ConfigError(f"expected head_epochs of 0 or more, got {self.head_epochs}; 0 warms nothing up")

    def freeze_layers(self, model: nn.Module, example: Images) -> dict[str, object]:
        return freezing.freeze(model, self.freeze, example).as_mapping()

    def phases(self) -> Sequence[Phase]:
        warm_up = Phase(name="head-warm-up", when="before", epochs=self.head_epochs, keep="last", part="whole_head")
        return (warm_up,) if self.head_epochs else ()
