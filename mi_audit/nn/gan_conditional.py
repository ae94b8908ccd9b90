"""Generators and critics that know the class of an image: conditional batch norm against a projection critic."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.gan import Networks, channel_widths

LATENT = 128
WIDEST = 1024  # channels of the published networks
Maps = Float[Tensor, "b c h w"]
Grown = Float[Tensor, "b d i j"]  # other maps of the same images


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale and shift belong to a class (de Vries et al., NeurIPS 2017)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Parameter(torch.ones(classes, channels))
        self.shift = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, maps: Maps, labels: Labels) -> Maps:
        # One-hot products instead of look-ups: their gradient is the same in every run on a GPU.
        chosen = F.one_hot(labels, len(self.scale)).to(self.scale.dtype)
        scale, shift = (chosen @ table for table in (self.scale, self.shift))
        return self.norm(maps) * scale[:, :, None, None] + shift[:, :, None, None]


class _Residual(nn.Module):
    """Doubles the side of the maps: conditional norms, bilinear steps, two 3x3 convolutions beside a 1x1 one."""

    def __init__(self, wide: int, narrow: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = ConditionalBatchNorm(wide, classes), ConditionalBatchNorm(narrow, classes)
        self.grow, self.refine = nn.Conv2d(wide, narrow, 3, padding=1), nn.Conv2d(narrow, narrow, 3, padding=1)
        self.skip = nn.Conv2d(wide, narrow, 1)

    def forward(self, maps: Maps, labels: Labels) -> Grown:
        grown = self.grow(_doubled(self.first(maps, labels).relu()))
        return self.skip(_doubled(maps)) + self.refine(self.second(grown, labels).relu())


class _Plain(nn.Module):
    """Doubles the side of the maps by one transposed convolution."""

    def __init__(self, wide: int, narrow: int, classes: int) -> None:
        super().__init__()
        self.norm = ConditionalBatchNorm(wide, classes)
        self.grow = nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)

    def forward(self, maps: Maps, labels: Labels) -> Grown:
        return self.grow(self.norm(maps, labels).relu())


class ConditionalGenerator(nn.Module):
    """Images in [0, 1] of `LATENT` standard normal numbers and a label each."""

    def __init__(self, start: nn.Module, blocks: list[nn.Module], end: nn.Module) -> None:
        super().__init__()
        self.start, self.blocks, self.end = start, nn.ModuleList(blocks), end

    def forward(self, latents: Latents, labels: Labels) -> Images:
        maps = self.start(latents)
        for block in self.blocks:
            maps = block(maps, labels)
        return self.end(maps)


class _Down(nn.Module):
    """Halves the side of the maps: two 3x3 convolutions beside a 1x1 one, then the mean of 2x2 pixels."""

    def __init__(self, before: int, after: int, *, first: bool) -> None:
        super().__init__()
        inner = after if first else before
        self.one, self.two = (
            _normed(nn.Conv2d(before, inner, 3, padding=1)),
            _normed(nn.Conv2d(inner, after, 3, padding=1)),
        )
        self.skip, self.first = _normed(nn.Conv2d(before, after, 1), gain=1.0), first

    def forward(self, maps: Maps) -> Grown:
        inner = self.two(self.one(maps if self.first else maps.relu()).relu())
        return F.avg_pool2d(inner, 2) + self.skip(F.avg_pool2d(maps, 2))


class ProjectionCritic(nn.Module):
    """Scores an image for a label: `linear(h) + <embedding(label), h>` (Miyato & Koyama, ICLR 2018).

    Args:
        body: Maps of images, summed over their pixels to h.
        features: Numbers in h.
        classes: Number of labels.
    """

    def __init__(self, body: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.body, self.classes = body, classes
        self.linear = _normed(nn.Linear(features, 1), gain=1.0)
        self.embedding = _normed(nn.Linear(classes, features, bias=False), gain=1.0)  # of one-hot labels

    def forward(self, images: Images, labels: Labels) -> PerSample:
        summed = self.body(images).sum(dim=(2, 3))
        named = self.embedding(F.one_hot(labels, self.classes).to(summed.dtype))
        return self.linear(summed).squeeze(1) + (named * summed).sum(dim=1)


def published_conditional(size: int, channels: int, classes: int) -> Networks:
    """The networks of PLG-MI's code at 64 pixels, with a sigmoid at the end; one stage more or less at other sizes.

    Raises:
        ConfigError: No such network for that size or number of channels.
    """
    stages = len(channel_widths(size, channels, 64))
    narrow = [min(WIDEST, 64 << stage) for stage in range(stages + 1)]  # from half the image down to 2x2
    wide = list(reversed(narrow))
    blocks: list[nn.Module] = [_Residual(before, after, classes) for before, after in pairwise(wide)]
    start = nn.Sequential(nn.Linear(LATENT, wide[0] * 16), nn.Unflatten(1, (wide[0], 4, 4)))
    end = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, channels, 1), nn.Sigmoid())
    down = [_Down(before, after, first=before == channels) for before, after in pairwise([channels, *narrow])]
    critic = ProjectionCritic(nn.Sequential(*down, nn.ReLU()), narrow[-1], classes)
    return Networks(ConditionalGenerator(start, blocks, end), critic, LATENT, classes)


def light_conditional(size: int, channels: int, classes: int, width: int) -> Networks:
    """Conditional networks that two cores can train: 4x4 kernels without residuals.

    Args:
        size: Of the images, in pixels.
        channels: Of the images.
        classes: Number of labels.
        width: Channels at half the image size; they double towards 4x4.

    Raises:
        ConfigError: No such network for that size or number of channels.
    """
    wide = channel_widths(size, channels, width)
    blocks: list[nn.Module] = [_Plain(before, after, classes) for before, after in pairwise(wide)]
    start = nn.Sequential(nn.Unflatten(1, (LATENT, 1, 1)), nn.ConvTranspose2d(LATENT, wide[0], 4, bias=False))
    end = nn.Sequential(
        nn.BatchNorm2d(wide[-1]), nn.ReLU(), nn.ConvTranspose2d(wide[-1], channels, 4, 2, 1), nn.Sigmoid()
    )
    down: list[nn.Module] = []
    for before, after in pairwise([channels, *reversed(wide)]):
        down += [_normed(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.2)]
    down += [_normed(nn.Conv2d(wide[0], 256, 3, padding=1)), nn.LeakyReLU(0.2)]
    critic = ProjectionCritic(nn.Sequential(*down), 256, classes)
    return Networks(ConditionalGenerator(start, blocks, end), critic, LATENT, classes)


def _normed(layer: nn.Linear | nn.Conv2d, gain: float = 2**0.5) -> nn.Module:
    """The layer with a largest singular value of one (Miyato et al., ICLR 2018), from a Xavier start."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer)


def _doubled(maps: Maps) -> Grown:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
