"""Differentiable random views of images, each drawn from the stream of its own sample."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.errors import ConfigError
from mi_audit.core.random import Streams
from mi_audit.core.types import Images, Labels, PerSample

Boxes = Float[Tensor, "b 4"]  # centre x, centre y, width, height; shares of the image, negative width mirrors

TRIES = 10  # boxes drawn until one fits into the image; the customary number


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """Cut out a random box and stretch it back to the size of the image; mirror it sometimes.

    The box covers a uniform share of the area, has a log-uniform ratio of width to height, and lies anywhere inside the
    image; a box that would stick out is drawn again. Its edges are not rounded to pixels.

    Attributes:
        area: Least and largest share of the area.
        ratio: Least and largest width divided by height, in pixels.
        flip: Probability of mirroring left and right.
        name: Name of the random draw; two crops of one step need two names.

    Raises:
        ConfigError: A range is empty or out of bounds.
    """

    area: tuple[float, float]
    ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    name: str = "crop"

    def __post_init__(self) -> None:
        low, high = self.area
        if not (0 < low <= high <= 1 and 0 < self.ratio[0] <= self.ratio[1] and 0 <= self.flip <= 1):
            raise ConfigError(
                f"expected 0 < area <= 1, rising ranges and 0 <= flip <= 1, "
                f"got area={self.area}, ratio={self.ratio}, flip={self.flip}; correct the crop"
            )

    def __call__(self, images: Images, streams: Streams, step: int | Labels) -> Images:
        """One view of each image: the one of `step` in its stream."""
        return cut(images, self.boxes(streams, step, images.shape[-1] / images.shape[-2]))

    def boxes(self, streams: Streams, step: int | Labels, shape: float = 1.0) -> Boxes:
        """One box per stream, for images whose width is `shape` times their height."""
        tries = 1 if self.ratio == (1.0, 1.0) and shape == 1.0 else TRIES
        draws = streams.uniform(self.name, 2 * tries + 3, step=step)
        area = _between(draws[:, :tries], *self.area)
        ratio = _between(draws[:, tries : 2 * tries], *(math.log(bound / shape) for bound in self.ratio)).exp()
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=2)  # b tries 2
        first = (sides <= 1).all(dim=2).int().argmax(dim=1)
        side = sides[torch.arange(len(first), device=first.device), first]
        side = side / side.amax(dim=1, keepdim=True).clamp_min(1)  # no try fitted: the largest box of this ratio
        centre = side / 2 + (1 - side) * draws[:, -3:-1]
        mirror = 1 - 2 * (draws[:, -1:] < self.flip).float()
        return torch.cat([centre, side[:, :1] * mirror, side[:, 1:]], dim=1)


def centre_crop(images: Images, side: float) -> Images:
    """The middle of each image, `side` times as wide and high, stretched back to the size of the image."""
    if side == 1:
        return images
    return cut(images, images.new_tensor([0.5, 0.5, side, side]).expand(len(images), 4))


def cut(images: Images, boxes: Boxes) -> Images:
    """Resample every image to the inside of its box, bilinearly, at its own size.

    One matrix per axis: unlike that of grid sampling, its gradient is the same in every run on a GPU.
    """
    x, y, width, height = boxes.unbind(dim=1)
    down, across = _taps(y, height, images.shape[-2]), _taps(x, width, images.shape[-1])
    with torch.autocast(images.device.type, enabled=False):  # half precision would shift the box by parts of a pixel
        squeezed = torch.einsum("bih,bchw->bciw", down, images.float())
        return torch.einsum("bjw,bciw->bcij", across, squeezed).to(images.dtype)


def _taps(centre: PerSample, extent: PerSample, size: int) -> Float[Tensor, "b size size"]:
    """Row i holds what output pixel i takes of every input pixel; positions outside take the pixel at the edge."""
    pixels = torch.arange(size, device=centre.device)
    wanted = centre[:, None] + extent[:, None] * ((pixels + 0.5) / size - 0.5)  # b size, as a share of the side
    position = (wanted * size - 0.5).clamp(0, size - 1)
    return (1 - (position[:, :, None] - pixels).abs()).clamp_min(0)


def _between(uniform: Float[Tensor, "*n"], low: float, high: float) -> Float[Tensor, "*n"]:
    return low + (high - low) * uniform
