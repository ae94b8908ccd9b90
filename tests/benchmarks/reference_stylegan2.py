"""StyleGAN2 as the published code runs it: every image has convolution weights of its own, in one grouped convolution.

Written from equations 1 and 3 of Karras et al., CVPR 2020; computes what `mi_audit.nn.stylegan2` computes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.core.prior import Painting
from mi_audit.nn.stylegan2 import Colour, Generator, StyledConv

TAPS = (1.0, 3.0, 3.0, 1.0)


class PerSampleGenerator(nn.Module):
    """The same weights as `generator`, used the published way.

    Args:
        generator: Network of this package, in eval mode.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator, self.clamp = generator, generator.shape.bound
        self.blocks = len(generator.blocks)

    def styles(self, z: Tensor) -> Tensor:
        return self.generator.mapping(z)

    @property
    def mean(self) -> Tensor:
        return self.generator.mapping.average

    def forward(self, styles: Tensor, painting: Painting | None = None, start: int = 0) -> Tensor:
        """Styles to images in [0, 1]; from block `start` on, when the blocks before it left a painting."""
        painting = self.paint(styles, painting, range(start, self.blocks))
        return (painting.colours * 0.5 + 0.5).clamp(0, 1)

    def paint(self, styles: Tensor, painting: Painting | None, blocks: range) -> Painting:
        """Run some blocks on what the blocks before them left."""
        features, colours = painting if painting is not None else (None, None)
        for place in blocks:
            block = self.generator.blocks[place]
            if features is None:
                features = block.start[None].repeat(len(styles), 1, 1, 1)
            else:
                features = self._styled(block.grow, features, styles)
            features = self._styled(block.refine, features, styles)
            added = self._coloured(block.colour, features, styles)
            colours = added if colours is None else _doubled(colours) + added
        return Painting(features, colours)

    def _styled(self, layer: StyledConv, maps: Tensor, styles: Tensor) -> Tensor:
        style = layer.style(styles)
        weight = layer.weight[None] * style[:, None, :, None, None]
        weight = weight * (weight.square().sum(dim=(2, 3, 4)) + 1e-8).rsqrt()[:, :, None, None, None]
        images, (outputs, inputs) = len(maps), layer.weight.shape[:2]
        merged = maps.reshape(1, images * inputs, *maps.shape[2:])
        if layer.up:
            each = weight.transpose(1, 2).reshape(images * inputs, outputs, 3, 3)
            merged = F.conv_transpose2d(merged, each, stride=2, groups=images)
            merged = _low_pass(merged, pad=1, gain=4.0)
        else:
            merged = F.conv2d(merged, weight.reshape(images * outputs, inputs, 3, 3), padding=1, groups=images)
        maps = merged.reshape(images, outputs, *merged.shape[2:])
        maps = maps + layer.noise * layer.strength
        maps = maps + layer.bias[:, None, None]
        maps = F.leaky_relu(maps, 0.2) * math.sqrt(2)
        return maps if self.clamp == math.inf else maps.clamp(-self.clamp, self.clamp)

    def _coloured(self, layer: Colour, maps: Tensor, styles: Tensor) -> Tensor:
        style = layer.style(styles) / math.sqrt(maps.shape[1])
        weight = layer.weight[None] * style[:, None, :, None, None]
        images, (outputs, inputs) = len(maps), layer.weight.shape[:2]
        merged = maps.reshape(1, images * inputs, *maps.shape[2:])
        merged = F.conv2d(merged, weight.reshape(images * outputs, inputs, 1, 1), groups=images)
        maps = merged.reshape(images, outputs, *merged.shape[2:]) + layer.bias[:, None, None]
        return maps if self.clamp == math.inf else maps.clamp(-self.clamp, self.clamp)


def _taps(maps: Tensor, gain: float) -> Tensor:
    line = torch.tensor(TAPS, device=maps.device)
    return (torch.outer(line, line) * gain / 64)[None, None].repeat(maps.shape[1], 1, 1, 1)


def _low_pass(maps: Tensor, pad: int, gain: float) -> Tensor:
    return F.conv2d(F.pad(maps, [pad] * 4), _taps(maps, gain), groups=maps.shape[1])


def _doubled(maps: Tensor) -> Tensor:
    apart = maps.new_zeros(*maps.shape[:2], 2 * maps.shape[2], 2 * maps.shape[3])
    apart[:, :, ::2, ::2] = maps
    return F.conv2d(F.pad(apart, [2, 1, 2, 1]), _taps(maps, 4.0), groups=maps.shape[1])
