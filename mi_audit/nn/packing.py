"""Frozen layers whose weights are cast and laid out once; they give the same bits as the layers that they replace.

Autocast casts weights that take no gradient in every pass, and a processor's convolution copies weights into the order
that its kernel reads in every pass, forward and back: on small maps that is a fifth of its time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

MOST = 4096  # positions of the smaller maps, over all rows, up to which laying out weights was measured to pay
LAST = torch.channels_last
PLAIN = ("none", [], "")  # no activation after the convolution

Maps = Float[Tensor, "b channels height width"]
Made = Float[Tensor, "b made height2 width2"]
Weight = Float[Tensor, "out in tall wide"]
Stamp = tuple[int, int, torch.dtype]


def pack(net: nn.Module) -> None:
    """Turn the convolutions, transposed convolutions and linear layers of a frozen network into those that cast once.

    Layers of other types stay, and so do those that compute their weights, or that anybody listens to. Weights stay as
    they are, too. Besides them a layer keeps what one arithmetic needs of them: at most one copy for each direction.
    """
    for module in net.modules():
        kind = _SWIFT.get(type(module))
        weight = module._parameters.get("weight")
        listened = module._forward_hooks or module._forward_pre_hooks
        if kind is None or listened or weight is None or weight.requires_grad or weight.dtype != torch.float32:
            continue
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                continue
            pairs = module.stride, module.padding, module.dilation
            module.packing = Packing(*(tuple(pair) for pair in pairs), groups=module.groups)
        else:
            module.packing = Packing()
        module.__class__ = kind


@dataclass(eq=False)
class Packing:
    """What is kept of the weights of one layer, which every call is given; of changed ones it is made anew.

    The weights are those of a convolution, outputs first. `down` is that convolution and `up` its transpose, each the
    way back of the other.
    """

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    _stamp: Stamp | None = None
    _cast: tuple[Tensor, Tensor | None] | None = None
    _laid: dict[bool, tuple[torch.Size, Tensor]] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_stamp": None, "_cast": None, "_laid": {}}  # copies make their own

    def cast(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Both in that precision."""
        if weight.dtype == dtype:
            return weight, bias
        self._renew(weight, dtype)
        if self._cast is None:
            self._cast = weight.to(dtype), None if bias is None else bias.to(dtype)
        return self._cast

    def fits(self, maps: Maps, weight: Weight, dtype: torch.dtype, *, up: bool) -> bool:
        """Whether laying out weights pays and leaves every bit as it is; single rows go other ways inside of torch."""
        if maps.device.type != "cpu" or self.groups != 1 or len(maps) < 2 or not _computes(dtype):
            return False
        positions = maps[:, 0].numel() // (1 if up else self.stride[0] * self.stride[1])
        if not 0 < positions <= MOST:
            return False
        ordered = maps if weight.shape[2:].numel() == 1 else weight  # layouts of 1x1 weights cannot be told apart
        return ordered.is_contiguous(memory_format=LAST) and not ordered.is_contiguous()

    def down(self, maps: Maps, weight: Weight, bias: Tensor | None = None) -> Made:
        """The convolution of maps that it `fits`, in their precision."""
        maps, geometry = maps.contiguous(memory_format=LAST), (self.padding, self.stride, self.dilation, 1)
        laid = self._of(
            maps, weight, False, lambda cast: _ops()._reorder_convolution_weight(cast, *geometry, maps.shape)
        )
        made: Made = _ops()._convolution_pointwise(maps, laid, bias, *geometry, *PLAIN)
        return made

    def up(self, maps: Maps, weight: Weight, sides: Sequence[int], bias: Tensor | None = None) -> Made:
        """The transposed convolution of maps that it `fits`, to maps of these sides."""
        maps, sizes = maps.contiguous(memory_format=LAST), zip(sides, maps.shape[2:], weight.shape[2:], strict=True)
        steps = zip(sizes, self.stride, self.padding, self.dilation, strict=True)
        beyond = [side - (n - 1) * step + 2 * pad - far * (k - 1) - 1 for (side, n, k), step, pad, far in steps]
        geometry = (self.padding, beyond, self.stride, self.dilation, 1)
        laid = self._of(
            maps, weight, True, lambda cast: _ops()._reorder_convolution_transpose_weight(cast, *geometry, maps.shape)
        )
        made: Made = _ops()._convolution_transpose_pointwise(maps, laid, bias, *geometry, *PLAIN)
        return made

    def _of(self, maps: Maps, weight: Weight, up: bool, lay_out: Any) -> Tensor:  # noqa: ANN401
        """The weights for such maps; for fewer of them those for more will do, in whatever order they are."""
        self._renew(weight, maps.dtype)
        known = self._laid.get(up)
        if known is None or known[0][1:] != maps.shape[1:] or known[0][0] < len(maps):
            known = self._laid[up] = maps.shape, lay_out(weight.to(maps.dtype))
        return known[1]

    def _renew(self, weight: Tensor, dtype: torch.dtype) -> None:
        """Forget what was kept for other weights or another precision."""
        stamp = weight.data_ptr(), weight._version, dtype
        if stamp != self._stamp:
            self._stamp, self._cast, self._laid = stamp, None, {}


class SwiftConv2d(nn.Conv2d):
    """A convolution whose weights never change."""

    packing: Packing

    def forward(self, maps: Maps) -> Made:
        dtype = _precision(maps, self.weight)
        if dtype is None:
            return super().forward(maps)
        if _returns(maps) and self.packing.fits(maps, self.weight, dtype, up=False):
            spans = zip(maps.shape[2:], self.kernel_size, self.padding, self.dilation, self.stride, strict=True)
            sides = [(n + 2 * int(pad) - far * (k - 1) - 1) // step + 1 for n, k, pad, far, step in spans]
            return _along(self, maps.to(dtype), sides, up=False)
        return self._conv_forward(maps, *self.packing.cast(self.weight, self.bias, dtype))


class SwiftConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution whose weights never change."""

    packing: Packing

    def forward(self, maps: Maps, output_size: list[int] | None = None) -> Made:
        dtype = _precision(maps, self.weight)
        if dtype is None or output_size is not None:
            return super().forward(maps, output_size)
        if _returns(maps) and self.packing.fits(maps, self.weight, dtype, up=True):
            spans = zip(
                maps.shape[2:], self.kernel_size, self.padding, self.dilation, self.stride, self.output_padding,
                strict=True,
            )  # fmt: skip
            sides = [(n - 1) * step - 2 * int(pad) + far * (k - 1) + 1 + more for n, k, pad, far, step, more in spans]
            return _along(self, maps.to(dtype), sides, up=True)
        weight, bias = self.packing.cast(self.weight, self.bias, dtype)
        geometry = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return F.conv_transpose2d(maps, weight, bias, *geometry)  # type: ignore[arg-type]


class SwiftLinear(nn.Linear):
    """A linear layer whose weights never change."""

    packing: Packing

    def forward(self, features: Float[Tensor, "*b in_"]) -> Float[Tensor, "*b out_"]:
        dtype = _precision(features, self.weight)
        if dtype is None:
            return super().forward(features)
        return F.linear(features, *self.packing.cast(self.weight, self.bias, dtype))


_SWIFT: dict[type[nn.Module], Any] = {
    nn.Conv2d: SwiftConv2d,
    nn.ConvTranspose2d: SwiftConvTranspose2d,
    nn.Linear: SwiftLinear,
}


class _Way(torch.autograd.Function):
    """One of the two ways; its gradient is the other way, of which the gradient is this one without the bias."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        maps: Tensor,
        packing: Packing,
        weight: Tensor,
        bias: Tensor | None,
        sides: Sequence[int],
        up: bool,
    ) -> Tensor:
        ctx.way = packing, weight, maps.shape[2:], up
        return packing.up(maps, weight, sides, bias) if up else packing.down(maps, weight, bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        packing, weight, sides, up = ctx.way
        return _Way.apply(slope, packing, weight, None, sides, not up), None, None, None, None, None


def _along(layer: SwiftConv2d | SwiftConvTranspose2d, maps: Maps, sides: Sequence[int], *, up: bool) -> Made:
    bias = None if layer.bias is None else layer.bias.to(maps.dtype)
    made: Made = _Way.apply(maps, layer.packing, layer.weight, bias, sides, up)
    return made


def _precision(given: Tensor, weight: Tensor) -> torch.dtype | None:
    """What the layer computes in; None where it is best left as it is."""
    if torch.compiler.is_compiling() or weight.requires_grad or weight.dtype != torch.float32:
        return None
    kind = given.device.type
    if torch.is_autocast_enabled(kind) and given.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return weight.dtype if given.dtype == weight.dtype else None


def _returns(maps: Tensor) -> bool:
    """Whether a gradient comes back; other passes are too few to keep anything for."""
    return maps.requires_grad and torch.is_grad_enabled()


def _computes(dtype: torch.dtype) -> bool:
    """Whether torch would give a convolution in that precision to the library whose layouts these are."""
    if not (torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(_ops()._is_mkldnn_bf16_supported()))


def _ops() -> Any:  # noqa: ANN401
    return torch.ops.mkldnn
