"""StyleGAN2's generator for searches: a copy whose weights never change, in fewer and faster operations."""

import math
import os
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mi_audit.core.prior import Painting
from mi_audit.nn.compiled import as_is, compiled
from mi_audit.nn.epilogue import coloured, styled
from mi_audit.nn.stylegan2 import TAPS, Block, Colour, Generator, Layered, Maps, ScaledLinear, Style, StyledConv
from mi_audit.nn.unchanged import Unchanged

GAIN = math.sqrt(2)  # of the activation
SHARE = 0.25  # of the free memory of a device that maps may take before they are computed again instead


class SwiftPainter:
    """Paints with a frozen copy of a generator, or with the generator itself while its weights take gradients.

    Args:
        generator: May be trained or moved; the copy is made when it is needed, and again when weights are others.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._made: tuple[Unchanged, FrozenGenerator] | None = None

    def __reduce__(self) -> tuple[type["SwiftPainter"], tuple[Generator]]:
        """Copies make a frozen copy of their own: their weights are others."""
        return SwiftPainter, (self.generator,)

    def paint(self, styles: Layered, painting: Painting | None = None, blocks: range | None = None) -> Painting:
        """As `Generator.paint`."""
        weights = list(self.generator.parameters())
        if any(weight.requires_grad or weight.is_inference() for weight in weights):
            return self.generator.paint(styles, painting, blocks)
        if self._made is None or not self._made[0].holds(weights):
            with torch.inference_mode(False):  # what is made in it cannot be used outside of it
                self._made = Unchanged(weights), FrozenGenerator(self.generator)
        return self._made[1].paint(styles, painting, blocks)


class FrozenGenerator(nn.Module):
    """What `Generator.paint` makes of styles in eval mode, to rounding; nothing that only weights determine is redone.

    Weights are laid out channels last, and cast once for every precision in use: autocast casts weights that take no
    gradient at every call. Under autocast maps are in its precision, styles, demodulation and colours in that of the
    weights. Gradients go to styles and paintings, once: for second derivatives take the `Generator`.

    Args:
        generator: It is not changed, and changes to it afterwards do not arrive here.

    Attributes:
        frugal: Keep the features between blocks only, and compute the rest again in the backward pass. None does so
            where the maps would take more than a quarter of the memory that is free, which is asked for once, before
            the first pass that gradients come back through; results are the same.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        shape = generator.shape
        with torch.no_grad():
            self.blocks = nn.ModuleList(
                compiled(FrozenBlock(block, shape.bound).eval())
                for block in generator.blocks
                if isinstance(block, Block)
            )
        self.frugal: bool | None = None
        self._free: int | None = None
        self.numbers = sum(2 * width * (4 << place) ** 2 for place, width in enumerate(shape.widths))

    def paint(self, styles: Layered, painting: Painting | None = None, blocks: range | None = None) -> Painting:
        """Run `blocks`, all of them by default, on the painting that the blocks before them left."""
        features, colours = painting if painting is not None else (None, None)
        kind = styles.device.type
        mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        frugal = torch.is_grad_enabled() and self._frugal(styles, mixed)
        with torch.autocast(kind, enabled=False):
            for place in blocks if blocks is not None else range(len(self.blocks)):
                block = self.blocks[place]
                if frugal:
                    features, colours = checkpoint(as_is(block), styles, features, colours, mixed, use_reentrant=False)
                else:
                    features, colours = block(styles, features, colours, mixed)
        assert features is not None and colours is not None
        return Painting(features, colours)

    def _frugal(self, styles: Layered, mixed: torch.dtype | None) -> bool:
        """Whether to compute maps again; what is kept for the backward pass is what every convolution ends in."""
        if self.frugal is not None:
            return self.frugal
        if self._free is None:
            self._free = _free_memory(styles.device)
        return len(styles) * self.numbers * (mixed or styles.dtype).itemsize > SHARE * self._free


class FrozenBlock(nn.Module):
    """`Block` of a generator whose weights do not change.

    Args:
        block: The original.
        bound: Activations and colours are clamped to plus and minus this.
    """

    def __init__(self, block: Block, bound: float) -> None:
        super().__init__()
        self.start = block.start.detach()[None].clone() if block.first else None
        self.grow = None if block.first else FrozenConv(block.grow, bound)
        self.refine, self.colour = FrozenConv(block.refine, bound), FrozenColour(block.colour, bound)
        self.first_layer = max(0, 2 * block.place - 1)

    def forward(
        self, styles: Layered, features: Maps | None, colours: Maps | None, mixed: torch.dtype | None
    ) -> tuple[Maps, Maps]:
        """The painting after the block, features in the precision `mixed`; None is that of the weights."""
        layer = self.first_layer
        if self.grow is None:
            assert self.start is not None
            features = self.start.expand(len(styles), -1, -1, -1).to(mixed or self.start.dtype)
        else:
            assert features is not None
            features = self.grow(features.to(mixed or self.refine.dtype), styles[:, layer])
            layer += 1
        features = self.refine(features, styles[:, layer])
        added = self.colour(features, styles[:, layer + 1])
        return features, added if colours is None else _doubled(colours.to(added.dtype)) + added


class _Affine(nn.Module):
    """A `ScaledLinear` whose scale and speed are multiplied into its weights."""

    def __init__(self, layer: ScaledLinear, gain: float = 1.0) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", layer.weight.detach() * (layer.scale * gain), persistent=False)
        self.register_buffer("bias", layer.bias.detach() * (layer.speed * gain), persistent=False)

    def forward(self, w: Style) -> Float[Tensor, "b o"]:
        return F.linear(w.to(self.weight.dtype), self.weight, self.bias)


class _Cast(NamedTuple):
    """The constants of a convolution in one precision."""

    weight: Float[Tensor, "_ _ 3 3"]
    taps: Float[Tensor, "out 1 4 4"] | None
    planes: Float[Tensor, "2 side side"]
    bias: Float[Tensor, " out"]


class FrozenConv(nn.Module):
    """`StyledConv` with the gain of the activation in demodulation, noise and bias, and its sums of squares at hand."""

    def __init__(self, layer: StyledConv, bound: float) -> None:
        super().__init__()
        weight, noise = layer.weight.detach(), layer.noise * (layer.strength.detach() * GAIN)
        self.power: Tensor
        self.register_buffer("power", weight.square().sum(dim=(2, 3)) / GAIN**2, persistent=False)
        self.style, self.bound, self.dtype = _Affine(layer.style), bound, weight.dtype
        taps = None
        if layer.up:
            line = weight.new_tensor(TAPS)
            taps = (torch.outer(line, line) / 16).expand(len(weight), 1, 4, 4).contiguous()
            weight = weight.transpose(0, 1)
        self._cast = {
            weight.dtype: _Cast(
                weight.clone(memory_format=torch.channels_last),
                taps,
                torch.stack([noise, torch.ones_like(noise)]),
                layer.bias.detach() * GAIN,
            )
        }

    def forward(self, maps: Maps, w: Style) -> Maps:
        style = self.style(w)
        gain = (F.linear(style.square(), self.power) + 1e-8 / GAIN**2).rsqrt()
        return styled(maps, style.to(maps.dtype), gain.to(maps.dtype), *self._at(maps.dtype), self.bound)

    def _at(self, dtype: torch.dtype) -> _Cast:
        """The constants in that precision, cast when they are first asked for."""
        if dtype not in self._cast:
            weight, taps, planes, bias = self._cast[self.dtype]
            cast = None if taps is None else taps.to(dtype)
            self._cast[dtype] = _Cast(weight.to(dtype), cast, planes.to(dtype), bias.to(dtype))
        return self._cast[dtype]


class FrozenColour(nn.Module):
    """`Colour` with a small matrix per image in place of a scaled copy of the features."""

    def __init__(self, layer: Colour, bound: float) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", layer.weight.detach().flatten(1), persistent=False)
        self.register_buffer("bias", layer.bias.detach()[:, None, None].clone(), persistent=False)
        self.style, self.bound = _Affine(layer.style, 1 / math.sqrt(layer.weight.shape[1])), bound

    def forward(self, maps: Maps, w: Style) -> Maps:
        """Colours in the precision of the weights."""
        matrices = (self.weight * self.style(w)[:, None]).to(maps.dtype)  # b colours channels
        colours = coloured(maps, matrices).to(self.bias.dtype) + self.bias
        return colours if self.bound == math.inf else colours.clamp(-self.bound, self.bound)


def _doubled(colours: Maps) -> Maps:
    """Twice the side: the low-pass filter after inserted zeros is bilinear interpolation between zeros all around."""
    side = 2 * colours.shape[-1] + 2
    wide = F.interpolate(F.pad(colours, (1, 1, 1, 1)), scale_factor=2.0, mode="bilinear", align_corners=False)
    return wide[:, :, 2:side, 2:side]


def _free_memory(device: torch.device) -> int:
    """Bytes that may still be taken; of a processor half of what there is, as files that were read seem to fill it."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
