"""StyleGAN2's critic: residual blocks from the image down to 4x4, and one score that sees missing variety."""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.core.types import Images, PerSample
from mi_audit.nn.gan import MinibatchStdDev
from mi_audit.nn.stylegan2 import Maps, ScaledLinear, Shape, bent, low_pass


class ScaledConv(nn.Module):
    """A convolution whose weights all learn at one speed; `down` filters and halves the side.

    Args:
        inputs, outputs: Channels.
        size: Of the kernel, odd.
        down: Halve the side.
        bias: Whether there is one.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, down: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.reach, self.down = 1 / math.sqrt(inputs * size**2), size // 2, down

    def forward(self, maps: Maps) -> Maps:
        weight = self.weight * self.scale
        if not self.down:
            return F.conv2d(maps, weight, self.bias, padding=self.reach)
        if self.reach == 0:  # filtering at the smaller size only is the same sum
            return F.conv2d(low_pass(maps, pad=1, stride=2), weight, self.bias)
        return F.conv2d(low_pass(maps, pad=self.reach + 1), weight, self.bias, stride=2)


class HalvingBlock(nn.Module):
    """Two convolutions beside a shortcut, over the root of two; halves the side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.refine = ScaledConv(inputs, inputs, 3)
        self.shrink = ScaledConv(inputs, outputs, 3, down=True)
        self.shortcut = ScaledConv(inputs, outputs, 1, down=True, bias=False)

    def forward(self, maps: Maps) -> Maps:
        return (bent(self.shrink(bent(self.refine(maps)))) + self.shortcut(maps)) * math.sqrt(0.5)


class Critic(nn.Module):
    """Images in [0, 1] to scores; a mirror of the generator of that shape."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths, last = shape.widths[::-1], shape.widths[0]
        self.entry = ScaledConv(shape.channels, widths[0], 1)
        self.blocks = nn.Sequential(*(HalvingBlock(wide, narrow) for wide, narrow in pairwise(widths)))
        self.variety = MinibatchStdDev()
        self.mix = ScaledConv(last + 1, last, 3)
        self.hidden = ScaledLinear(last * 16, last)
        self.score = ScaledLinear(last, 1)

    def forward(self, images: Images) -> PerSample:
        maps = self.blocks(bent(self.entry(images * 2 - 1)))
        maps = bent(self.mix(self.variety(maps)))
        return self.score(bent(self.hidden(maps.flatten(1)))).squeeze(1)
