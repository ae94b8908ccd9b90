"""StyleGAN2's generator for square images of 32 to 1024 pixels, grey or RGB, cut into blocks.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, with the settings of "Training
Generative Adversarial Networks with Limited Data", NeurIPS 2020. Written from their equations.
"""

import math
from collections.abc import Mapping as Named
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mi_audit.core.errors import ConfigError
from mi_audit.core.prior import Painting
from mi_audit.core.types import Images, Latents
from mi_audit.nn.constants import beside

Maps = Float[Tensor, "_ _ _ _"]  # images, features, height, width
Style = Float[Tensor, "b style"]
Layered = Float[Tensor, "b layers style"]

SIZES = (32, 64, 128, 256, 512, 1024)
SLOW = 0.01  # learning rate of the mapping network, relative to the others
TAPS = (1.0, 3.0, 3.0, 1.0)  # the low-pass filter of every resampling


@dataclass(frozen=True, slots=True)
class Shape:
    """What tells one StyleGAN2 from another.

    Attributes:
        size: Side of the images in pixels.
        channels: Of the images: 1 or 3.
        widths: Feature channels at 4x4, 8x8, ..., `size` x `size`.
        latent, style: Numbers in a latent z and in a style w.
        depth: Layers of the mapping network.
        bound: Activations and colours are clamped to plus and minus this, after the gain; infinite unless the weights
            were trained with such a bound.

    Raises:
        ConfigError: There is no such network.
    """

    size: int
    channels: int
    widths: tuple[int, ...]
    latent: int = 512
    style: int = 512
    depth: int = 8
    bound: float = math.inf

    def __post_init__(self) -> None:
        if self.size not in SIZES or self.channels not in (1, 3):
            raise ConfigError(
                f"expected images of 32, 64, 128, 256, 512 or 1024 pixels with 1 or 3 channels, got {self.size} pixels "
                f"and {self.channels} channels; set the image size (--size 64)"
            )
        if len(self.widths) != self.size.bit_length() - 2 or min(*self.widths, self.latent, self.style, self.depth) < 1:
            raise ConfigError(
                f"expected one positive width per resolution of {self.size} pixels, got {self}; correct it"
            )

    @property
    def layers(self) -> int:
        """Styles that an image takes: one per convolution, and one for the last colours."""
        return 2 * len(self.widths)

    @classmethod
    def tapering(
        cls, size: int, channels: int, base: int, widest: int = 512, dims: int = 512, depth: int = 8
    ) -> "Shape":
        """`base` channels over the side in pixels, at most `widest`; `dims` numbers in latents and styles alike."""
        sides = [side for side in (4, 8, 16, *SIZES) if side <= size]
        return cls(size, channels, tuple(min(widest, max(1, base // side)) for side in sides), dims, dims, depth)

    @classmethod
    def of(cls, weights: Named[str, Tensor]) -> "Shape":
        """The shape of the generator with this state."""
        depth = sum(name.startswith("mapping.layers.") and name.endswith(".weight") for name in weights)
        blocks = sum(name.startswith("blocks.") and name.endswith(".colour.weight") for name in weights)
        widths = tuple(len(weights[f"blocks.{block}.refine.weight"]) for block in range(blocks))
        channels, (style, latent) = len(weights["blocks.0.colour.weight"]), weights["mapping.layers.0.weight"].shape
        return cls(2 << blocks, channels, widths, latent, style, depth, float(weights["bound"]) or math.inf)


class ScaledLinear(nn.Module):
    """A linear layer whose weights all learn at one speed: stored as N(0, 1), used over the root of the fan-in.

    Karras et al., "Progressive Growing of GANs", ICLR 2018, section 4.1. It stays in the precision of its weights under
    autocast: searches move styles by 0.005 per step, less than bfloat16 can tell from nothing.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, speed: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / speed)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.speed = speed / math.sqrt(inputs), speed

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(self.weight.dtype), self.weight * self.scale, self.bias * self.speed)


class Mapping(nn.Module):
    """Latents z to styles w; keeps the average style, towards which truncation pulls."""

    average: Tensor

    def __init__(self, shape: Shape, decay: float = 0.995) -> None:
        super().__init__()
        widths = [shape.latent] + [shape.style] * shape.depth
        self.layers = nn.ModuleList(ScaledLinear(i, o, speed=SLOW) for i, o in pairwise(widths))
        self.decay = decay
        self.register_buffer("average", torch.zeros(shape.style))

    def forward(self, z: Float[Tensor, "b latent"]) -> Style:
        """`w`; in training the average style follows the mean of the batch."""
        w = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            w = bent(layer(w))
        if self.training:
            self.average.lerp_(w.detach().to(self.average.dtype).mean(dim=0), 1 - self.decay)
        return w


class StyledConv(nn.Module):
    """A 3x3 convolution whose weights a style scales, noise, bias and leaky ReLU; `up` doubles the side first.

    With s the style per input channel: `w'_oik = s_i w_oik`, over its own norm per output channel (equations 1 and 3).
    Scaling inputs and outputs in place of the weights is the same sum, and all images share one convolution.
    """

    noise: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, style: int, *, up: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))  # any scale cancels against the norm
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))
        self.style = ScaledLinear(style, inputs, bias=1.0)
        self.register_buffer("noise", torch.randn(size, size))
        self.up = up

    def forward(self, maps: Maps, w: Style, clamp: float = math.inf) -> Maps:
        style = self.style(w)
        with torch.autocast(style.device.type, enabled=False):
            power = F.linear(style.square(), self.weight.square().sum(dim=(2, 3)))
        maps = maps * style.to(maps.dtype)[:, :, None, None]
        if self.up:
            maps = low_pass(F.conv_transpose2d(maps, self.weight.transpose(0, 1), stride=2), pad=1, gain=4.0)
        else:
            maps = F.conv2d(maps, self.weight, padding=1)
        maps = maps * (power + 1e-8).rsqrt()[:, :, None, None]
        side = self.noise.shape[-1]
        noise = maps.new_empty(len(maps), 1, side, side).normal_() if self.training else self.noise
        return bent(maps + noise * self.strength + self.bias[:, None, None], clamp)


class Colour(nn.Module):
    """Features to colours: a 1x1 convolution that a style scales, without a norm."""

    def __init__(self, inputs: int, channels: int, style: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.style = ScaledLinear(style, inputs, bias=1.0)

    def forward(self, maps: Maps, w: Style, clamp: float = math.inf) -> Maps:
        style = self.style(w) / math.sqrt(maps.shape[1])
        colours = F.conv2d(maps * style.to(maps.dtype)[:, :, None, None], self.weight, self.bias)
        return colours if clamp == math.inf else colours.clamp(-clamp, clamp)


class Block(nn.Module):
    """One resolution: double the side, refine, add the colours to those of the blocks before.

    The first block starts from learned features of 4x4 instead.
    """

    def __init__(self, shape: Shape, place: int) -> None:
        super().__init__()
        width, size = shape.widths[place], 4 << place
        if place == 0:
            self.start = nn.Parameter(torch.randn(width, size, size))
        else:
            self.grow = StyledConv(shape.widths[place - 1], width, size, shape.style, up=True)
        self.refine = StyledConv(width, width, size, shape.style, up=False)
        self.colour = Colour(width, shape.channels, shape.style)
        self.first, self.place = place == 0, place

    def forward(self, styles: Layered, features: Maps | None, colours: Maps | None, clamp: float) -> tuple[Maps, Maps]:
        """The painting after the block; the style of its colours is that of the next block's first convolution."""
        if features is None:
            features, layer = self.start.expand(len(styles), -1, -1, -1), 0
        else:
            layer = 2 * self.place - 1
            features = self.grow(features, styles[:, layer], clamp)
            layer += 1
        features = self.refine(features, styles[:, layer], clamp)
        added = self.colour(features, styles[:, layer + 1], clamp)
        return features, added if colours is None else doubled(colours) + added


class Generator(nn.Module):
    """Latents to images; in training with fresh noise and mixed styles, else a function of the latents alone.

    Args:
        shape: Of the network.
        mixing: Share of the training images whose finer layers take the style of another latent.

    Attributes:
        bound: That of the shape, kept with the weights; 0 is none.
        length: Running mean of the path length, for its regulariser.
        frugal: Keep the features between blocks only, and compute the rest again in the backward pass.
    """

    bound: Tensor
    length: Tensor

    def __init__(self, shape: Shape, mixing: float = 0.9) -> None:
        super().__init__()
        self.shape, self.mixing, self.frugal = shape, mixing, False
        self.mapping = Mapping(shape)
        self.blocks = nn.ModuleList(Block(shape, place) for place in range(len(shape.widths)))
        self.register_buffer("bound", torch.tensor(shape.bound if math.isfinite(shape.bound) else 0.0))
        self.register_buffer("length", torch.zeros(()))

    def forward(self, z: Float[Tensor, "b latent"]) -> Images:
        """Images in [0, 1]; in training values may leave it, so that the critic can pull them back."""
        images = self.paint(self.styles(z)).colours * 0.5 + 0.5
        return images if self.training else images.clamp(0, 1)

    def styles(self, z: Float[Tensor, "b latent"]) -> Layered:
        """One style per layer; in training some come from a second latent, from a random layer on."""
        w = self.layered(self.mapping(z))
        if not self.training or not self.mixing:
            return w
        other = self.layered(self.mapping(torch.randn_like(z)))
        cut = torch.randint(1, self.shape.layers, (len(z),), device=z.device)
        cut = torch.where(torch.rand(len(z), device=z.device) < self.mixing, cut, self.shape.layers)
        layer = torch.arange(self.shape.layers, device=z.device)
        return torch.where((layer < cut[:, None])[:, :, None], w, other)

    def layered(self, styles: Latents) -> Layered:
        """One style for all layers, or already one per layer."""
        return styles if styles.ndim == 3 else styles[:, None].expand(-1, self.shape.layers, -1)

    def paint(self, styles: Layered, painting: Painting | None = None, blocks: range | None = None) -> Painting:
        """Run `blocks`, all of them by default, on the painting that the blocks before them left."""
        features, colours = painting if painting is not None else (None, None)
        for place in blocks if blocks is not None else range(len(self.blocks)):
            if self.frugal and torch.is_grad_enabled():
                features, colours = checkpoint(
                    self.blocks[place], styles, features, colours, self.shape.bound, use_reentrant=False
                )
            else:
                features, colours = self.blocks[place](styles, features, colours, self.shape.bound)
        assert features is not None and colours is not None
        return Painting(features, colours)


def bent(x: Float[Tensor, "*n"], clamp: float = math.inf) -> Float[Tensor, "*n"]:
    """Leaky ReLU of slope 0.2 times the root of two, which keeps the variance; then clamped to +-`clamp`."""
    x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    return x if clamp == math.inf else x.clamp(-clamp, clamp)


def low_pass(maps: Maps, pad: int, gain: float = 1.0, stride: int = 1) -> Maps:
    """The filter [1 3 3 1] x [1 3 3 1] / 64 times `gain` over every channel, on `pad` zeros all around."""
    return F.conv2d(maps, _kernel(maps, gain), padding=pad, stride=stride, groups=maps.shape[1])


def doubled(maps: Maps) -> Maps:
    """Twice the side: zeros between the pixels, then the low-pass filter with gain four."""
    return F.conv_transpose2d(maps, _kernel(maps, 4.0), padding=1, stride=2, groups=maps.shape[1])


def _kernel(maps: Maps, gain: float) -> Float[Tensor, "d 1 4 4"]:
    taps = beside(maps, TAPS)
    return (torch.outer(taps, taps) * (gain / 64)).expand(maps.shape[1], 1, 4, 4)
