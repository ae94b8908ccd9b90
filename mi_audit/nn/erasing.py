"""Squares of one colour in the place of a part of every image, for a defense and for the attack that knows it."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.random import Streams
from mi_audit.core.types import Images, Labels
from mi_audit.nn.classifier import LUMINANCE
from mi_audit.nn.constants import beside

Fill = Literal["paper", "neutral"]
LOW, HIGH = 0.1, 0.4  # published shares of the area
FILLS: dict[Fill, tuple[float, float, float]] = {  # in [0, 1]
    "paper": (0.7425, 0.728, 0.703),  # the released code's (0.485, 0.456, 0.406) in [-1, 1]: v / 2 + 1 / 2
    "neutral": (0.5, 0.5, 0.5),
}


@dataclass(frozen=True, slots=True)
class Erasing:
    """Fill one random square of each image: a view of what a model trained with MIDRE has learned from.

    Attributes:
        low, high: Smallest and largest erased share of the area.
        fill: Colour, as in MIDRE.
        name: Name of the random draw.
    """

    low: float = LOW
    high: float = HIGH
    fill: Fill = "paper"
    name: str = "erasing"

    def __call__(self, images: Images, streams: Streams, step: int | Labels) -> Images:
        uniform = streams.uniform(self.name, 3, step=step)
        return erase(images, uniform, self.low, self.high, colour_of(images, self.fill))


def colour_of(images: Images, fill: Fill) -> Float[Tensor, " c"]:
    """The colour for the channels of `images`: grey images get its luminance."""
    colour = beside(images, FILLS[fill])
    return colour if images.shape[1] > 1 else (colour * beside(images, LUMINANCE)).sum(dim=0, keepdim=True)


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
