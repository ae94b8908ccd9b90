"""Random changes of training images. Every function is pure: the uniform numbers it needs are an argument."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mi_audit.core.types import Images

Augmentation = Literal["none", "shift", "faces"]
DRAWS = 6  # uniform numbers per image: angle, zoom, two shifts, flip, brightness


@dataclass(frozen=True, slots=True)
class Ranges:
    """How far each change goes, either way.

    Attributes:
        degrees: Rotation.
        zoom: Relative change of scale.
        shift: Translation, as a share of the image side.
        flip: Whether every second image is mirrored.
        brightness: Relative change of brightness.
    """

    degrees: float
    zoom: float
    shift: float
    flip: bool
    brightness: float


RANGES = {
    "shift": Ranges(degrees=8.0, zoom=0.08, shift=0.06, flip=False, brightness=0.0),
    "faces": Ranges(degrees=8.0, zoom=0.08, shift=0.05, flip=True, brightness=0.2),
}


def augment(images: Images, uniform: Float[Tensor, "b 6"], name: Augmentation) -> Images:
    """Rotate, zoom, shift, mirror and brighten each image by its own numbers; edges repeat, values stay in [0, 1].

    Args:
        images: In [0, 1].
        uniform: Numbers in [0, 1); 0.5 everywhere leaves an image as it is.
        name: `shift` never mirrors (digits, letters, X-rays); `faces` also mirrors and brightens.
    """
    if name == "none" or not len(images):  # a Poisson batch may be empty, and a grid may not
        return images
    ranges = RANGES[name]
    angle, zoom, right, down, flip, bright = (2 * uniform - 1).unbind(1)
    mirror = torch.where(flip < 0, -1.0, 1.0) if ranges.flip else torch.ones_like(flip)
    scale = 1 + ranges.zoom * zoom
    cos, sin = (
        scale * (angle * math.radians(ranges.degrees)).cos(),
        scale * (angle * math.radians(ranges.degrees)).sin(),
    )
    shifts = 2 * ranges.shift * torch.stack([right, down], dim=1)
    turn = torch.stack([mirror * cos, -sin, mirror * sin, cos], dim=1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([turn, shifts[:, :, None]], dim=2), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return (moved * (1 + ranges.brightness * bright)[:, None, None, None]).clamp(0, 1)


def mirrored(images: Images, uniform: Float[Tensor, " b"]) -> Images:
    """Every image whose number is below one half, flipped left to right."""
    return torch.where((uniform < 0.5)[:, None, None, None], images.flip(3), images)


def distorted(images: Images, uniform: Float[Tensor, "b 3"], shift: float, brightness: float) -> Images:
    """Shift each image by whole pixels over black and add to its brightness; differentiable in the images.

    Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020: a critic that sees real
    and generated images through the same distortion cannot memorise the real ones. Values may leave [0, 1].

    Args:
        images: In [0, 1].
        uniform: Numbers in [0, 1): down, right, brightness.
        shift: Largest translation, as a share of the side; rounded to pixels.
        brightness: Largest change.
    """
    side, most = images.shape[-1], round(shift * images.shape[-1])
    brighter = images + brightness * (2 * uniform[:, 2, None, None, None] - 1)
    steps = (uniform[:, :2] * (2 * most + 1)).floor() - most
    place = torch.arange(side, device=images.device)
    down, right = (  # b side side; row i takes row i - step
        (place[:, None] - place[None, :] == step[:, None, None]).to(brighter.dtype) for step in steps.unbind(1)
    )
    return down[:, None] @ brighter @ right[:, None].mT
