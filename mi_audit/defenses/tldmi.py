"""TL-DMI: let only the last layers learn from the private data."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mi_audit.core.defense import Defense, Slot
from mi_audit.core.paper import Paper
from mi_audit.core.types import Images
from mi_audit.nn import freezing


@dataclass(frozen=True, kw_only=True)
class TLDMI(Defense):
    """Start from public weights, freeze the first units there, and fine-tune the rest with plain cross-entropy.

    `min over theta_C of E[CE(f(x; theta_public, theta_C), y)]`: the frozen layers carry no private information. Unlike
    the released code, the stem is frozen with the first unit, the batch norms of frozen units stay in eval mode, so
    that their statistics do not drift to the private data, and zero units means none instead of all. Only parameters
    that require a gradient belong in the optimiser.

    Attributes:
        freeze: Which part, in the grammar of `nn.freezing`; `80%` of the units in depth is close to the paper's cuts.

    Raises:
        ConfigError: `freeze` is not in the grammar, or the network has no such part.
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
    slots: ClassVar = frozenset({Slot.FREEZE})
    needs_public_init: ClassVar = True

    freeze: str = "80%"

    def __post_init__(self) -> None:
        freezing.parse(self.freeze)

    def freeze_layers(self, model: nn.Module, example: Images) -> dict[str, object]:
        return freezing.freeze(model, self.freeze, example).as_mapping()
