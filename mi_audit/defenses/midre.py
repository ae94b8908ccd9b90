"""MIDRE: never show the model a whole image, by erasing a random square of every training image."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.defense import Defense, Moment, Slot
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.types import Images, Labels
from mi_audit.nn.classifier import LUMINANCE

FILLS = {  # in [0, 1]
    "paper": (0.7425, 0.728, 0.703),  # the released code's (0.485, 0.456, 0.406) in [-1, 1]: v / 2 + 1 / 2
    "neutral": (0.5, 0.5, 0.5),
}


@dataclass(frozen=True, kw_only=True)
class MIDRE(Defense):
    """Fill one square of every training image with one colour, in every phase; the loss and the model stay as they are.

    The erased share of the area is uniform between `low` and `high`, its place uniform over all that fit. What the
    model never sees whole it cannot give back whole. Images that the model is tested with are not touched.

    Attributes:
        low, high: Smallest and largest erased share of the area; the paper tries high = 0.4 and 0.8.
        fill: `paper` is the light grey of the released code, `neutral` middle grey.

    Raises:
        ConfigError: The shares are out of range or in the wrong order.
    """

    paper: ClassVar = Paper(
        title="Random Erasing vs. Model Inversion: A Promising Defense or a False Hope?",
        authors="Tran et al.",
        venue="TMLR 2025",
        url="https://arxiv.org/abs/2409.01062",
    )
    smoke: ClassVar = {}
    kind: ClassVar = "data"
    adaptive: ClassVar = "erase random squares of the attacked image, too, and average the gradients over them"
    slots: ClassVar = frozenset({Slot.DATA})
    deviations: ClassVar = ("Grey images are filled with the luminance of the colour.",)

    low: float = 0.1
    high: float = 0.4
    fill: Literal["paper", "neutral"] = "paper"

    def __post_init__(self) -> None:
        require_finite(self)
        if not 0 < self.low <= self.high < 1:
            raise ConfigError(
                f"expected 0 < low <= high < 1, got {self.low}, {self.high}; set for example midre.high=0.4"
            )

    def transform(self, images: Images, labels: Labels, moment: Moment) -> Images:
        del labels
        uniform = torch.rand(len(images), 3, generator=moment.rng).to(images.device)
        colour = images.new_tensor(FILLS[self.fill])
        if images.shape[1] == 1:
            colour = (colour * images.new_tensor(LUMINANCE)).sum(dim=0, keepdim=True)
        return erase(images, uniform, self.low, self.high, colour)


def erase(
    images: Images, uniform: Float[Tensor, "b 3"], low: float, high: float, colour: Float[Tensor, " c"]
) -> Images:
    """Each image with one square, inside it, of one colour.

    Args:
        images: In [0, 1].
        uniform: Numbers in [0, 1) per image: share of the area between `low` and `high`, place down, place right.
        low: Smallest share of the area; the side is rounded to pixels.
        high: Largest share; where the square would not fit, it ends at the shorter side of the image.
        colour: Per channel.
    """
    height, width = images.shape[-2:]
    share = low + (high - low) * uniform[:, 0]
    side = (share * height * width).sqrt().round().clamp(1, min(height, width))
    rows = _covered(height, uniform[:, 1], side)
    columns = _covered(width, uniform[:, 2], side)
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(inside, colour[:, None, None], images)


def _covered(length: int, place: Float[Tensor, " b"], side: Float[Tensor, " b"]) -> Tensor:
    """Which of `length` pixels lie in an interval of `side` pixels at a place in [0, 1), one row per image."""
    start = (place * (length - side + 1)).floor()[:, None]
    pixels = torch.arange(length, device=place.device)
    return (pixels >= start) & (pixels < start + side[:, None])
