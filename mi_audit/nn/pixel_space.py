"""What a search over bare pixels needs in place of a generator: units, views, and terms that keep images natural.

The units are those of images normalised as is customary for ImageNet, for which the step sizes and weights of such
searches were published: one unit is 0.225 of the range of a pixel, and zero is grey.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mi_audit.core.random import Streams
from mi_audit.core.target import Normalisation
from mi_audit.core.types import Images, Labels

PerGroup = Float[Tensor, " groups"]

CENTRE, SPREAD = 0.5, 0.225  # the middle of the range, and the mean of the three customary deviations


@dataclass(frozen=True, slots=True)
class Roll:
    """Shift each image by whole pixels, what leaves on one side coming in on the other; mirror it sometimes.

    Attributes:
        share: Largest shift, as a share of the side, rounded to pixels.
        flip: Probability of mirroring left and right.
        name: Name of the random draw.
    """

    share: float
    flip: float = 0.5
    name: str = "roll"

    def __call__(self, images: Images, streams: Streams, step: int | Labels) -> Images:
        draws = streams.uniform(self.name, 3, step=step)
        for axis, draw in ((2, draws[:, :1]), (3, draws[:, 1:2])):
            limit = round(self.share * images.shape[axis])
            shift = ((2 * limit + 1) * draw).floor().long() - limit
            places = (torch.arange(images.shape[axis], device=images.device) - shift) % images.shape[axis]
            index = places[:, None, :, None] if axis == 2 else places[:, None, None, :]
            images = images.gather(axis, index.expand_as(images))  # a permutation: its gradient adds nothing up
        return torch.where(draws[:, 2, None, None, None] < self.flip, images.flip(3), images)


def coarse(images: Images, streams: Streams, step: int | Labels) -> Images:
    """Every two by two pixels replaced by their mean; a view like any other, but not random."""
    del streams, step
    return F.interpolate(F.avg_pool2d(images, 2), size=images.shape[-2:], mode="nearest")


def total_variation(images: Images, group: int) -> PerGroup:
    """Sum over the four directions of the norm of the differences between neighbours, over all images of a group.

    Args:
        images: In units; `group` images that follow each other belong together.
        group: Images per group; the result has one number for each.
    """
    differences = (
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1, :] - images[:, :, 1:, :],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
    )
    return torch.stack([part.flatten(1).unflatten(0, (-1, group)).flatten(1).norm(dim=1) for part in differences]).sum(
        0
    )


def statistics_distance(seen: Sequence[Normalisation], group: int, first: float) -> PerGroup:
    """How far mean and variance of what enters the batch normalisations are from what these learned, per group.

    `sum over layers of |mean - learned mean|_2 + |variance - learned variance|_2` over channels, the first layer
    counted `first` times (DeepInversion, Eq. 4); the statistics are over the images of a group and over positions.
    """
    total = torch.zeros(len(seen[0].inputs) // group, device=seen[0].inputs.device)
    for layer, (inputs, mean, variance) in enumerate(seen):
        own_variance, own_mean = torch.var_mean(
            inputs.float().unflatten(0, (-1, group)).transpose(1, 2).flatten(2), dim=2, correction=0
        )
        gap = (own_mean - mean).norm(dim=1) + (own_variance - variance).norm(dim=1)
        total = total + (gap if layer else first * gap)
    return total
