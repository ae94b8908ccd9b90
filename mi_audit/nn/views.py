"""Differentiable random views of images, each drawn from the stream of its own sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.errors import ConfigError
from mi_audit.core.random import Streams
from mi_audit.core.types import Images, Labels, PerSample
from mi_audit.nn.constants import beside

View = Callable[[Images, Streams, int | Labels], Images]
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


@dataclass(frozen=True, slots=True)
class Jitter:
    """Change brightness and contrast of some images; values are clipped to [0, 1].

    The contrast is stretched about the mean of the image, by a factor of one plus its change.

    Attributes:
        brightness, contrast: Largest change either way.
        share: Probability that an image is changed at all.
        name: Name of the random draw.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    share: float = 1.0
    name: str = "jitter"

    def __call__(self, images: Images, streams: Streams, step: int | Labels) -> Images:
        draws = streams.uniform(self.name, 3, step=step)
        change = (2 * draws[:, :2] - 1) * (draws[:, 2:] < self.share)
        brighter, stretched = (part[:, None, None, None] for part in change.unbind(dim=1))
        middle = images.mean(dim=(1, 2, 3), keepdim=True)
        return (middle + (1 + self.contrast * stretched) * (images - middle) + self.brightness * brighter).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Turn some images about their centre by a uniform angle; what comes in from outside is black.

    Attributes:
        degrees: Largest angle either way.
        share: Probability that an image is turned at all.
        name: Name of the random draw.
    """

    degrees: float = 5.0
    share: float = 0.5
    name: str = "rotation"

    def __call__(self, images: Images, streams: Streams, step: int | Labels) -> Images:
        draws = streams.uniform(self.name, 2, step=step)
        return turned(images, math.radians(self.degrees) * (2 * draws[:, 0] - 1) * (draws[:, 1] < self.share))


@dataclass(frozen=True, slots=True)
class Chain:
    """One view after the other.

    Attributes:
        views: In order.
    """

    views: tuple[View, ...]

    def __call__(self, images: Images, streams: Streams, step: int | Labels) -> Images:
        for view in self.views:
            images = view(images, streams, step)
        return images


def turned(images: Images, angles: PerSample) -> Images:
    """Every square image turned by its own angle in radians, from the x axis (right) towards the y axis (down).

    A turn is three shears (Paeth, "A fast algorithm for general raster rotation", 1986): along x by `-tan(angle / 2)`,
    along y by `sin(angle)`, along x again. A shear moves whole rows, so that no two pixels of the result take the same
    part of one pixel, and the gradient is the same in every run on a GPU.
    """
    across, down = (angles / 2).tan(), -angles.sin()
    return _sheared(_sheared(_sheared(images, across).mT, down).mT, across)


def _sheared(images: Images, slopes: PerSample) -> Images:
    """Pixel (row, column) takes what lies `slope` columns further right per row below the centre; black outside."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - (height - 1) / 2
    columns = torch.arange(width, device=images.device)
    wanted = columns + slopes[:, None, None] * rows[:, None]  # b h w
    left = wanted.floor()
    result = torch.zeros_like(images)
    for place, share in ((left, left + 1 - wanted), (left + 1, wanted - left)):
        inside = (place >= 0) & (place < width)
        index = place.long().clamp(0, width - 1)[:, None].expand_as(images)
        result = result + images.gather(3, index) * (share * inside)[:, None]
    return result


def centre_crop(images: Images, side: float) -> Images:
    """The middle of each image, `side` times as wide and high, stretched back to the size of the image."""
    if side == 1:
        return images
    return cut(images, beside(images, (0.5, 0.5, side, side)).expand(len(images), 4))


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
