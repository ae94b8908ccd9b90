"""Frozen layers that cast their weights to the precision of autocast once; they give the same bits as plain layers.

Autocast keeps what it casts only for weights that take gradients: frozen weights it casts again in every pass.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.nn.unchanged import Unchanged

Maps = Float[Tensor, "*b channels height width"]
Made = Float[Tensor, "*b made height2 width2"]


def cast_once(net: nn.Module) -> None:
    """Turn the convolutions, transposed convolutions and linear layers of a frozen network into those that cast once.

    Layers of other types stay, and so do those that compute their weights, or that pad with anything but zeros. Weights
    stay as they are; besides them a layer keeps what it cast last, so that one in bfloat16 takes half as much again.
    """
    layer: Any
    for layer in net.modules():
        kind = _KINDS.get(type(layer))
        if kind is not None and "weight" in layer._parameters and getattr(layer, "padding_mode", "zeros") == "zeros":
            layer.__class__ = kind
            layer.casts = Casts()


class Casts:
    """What a layer cast last; of other weights, changed ones or another precision it is made anew."""

    def __init__(self) -> None:
        self._kept: tuple[torch.dtype, Unchanged, tuple[Tensor, Tensor | None]] | None = None

    def __reduce__(self) -> tuple[type["Casts"], tuple[()]]:
        return Casts, ()  # copies of the layer make their own

    def of(self, given: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """Weights and biases as autocast would cast them beside `given`; None where that is left to it, or not on."""
        kind = given.device.type
        if torch.compiler.is_compiling() or not torch.amp.is_autocast_available(kind):
            return None
        if not torch.is_autocast_enabled(kind):
            return None
        own = [weight] if bias is None else [weight, bias]
        if not all(map(_stays, own)):
            return None
        dtype = torch.get_autocast_dtype(kind)
        if self._kept is None or self._kept[0] != dtype or not self._kept[1].holds(own):
            with torch.inference_mode(False):  # what is made in it cannot be used outside of it
                cast = weight.to(dtype), None if bias is None else bias.to(dtype)
            self._kept = dtype, Unchanged(own), cast
        return self._kept[2]


class CastConv2d(nn.Conv2d):
    """A convolution whose weights never change."""

    casts: Casts

    def forward(self, maps: Maps) -> Made:
        cast = self.casts.of(maps, self.weight, self.bias)
        if cast is None:
            return super().forward(maps)
        return F.conv2d(maps, *cast, self.stride, self.padding, self.dilation, self.groups)


class CastConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution whose weights never change."""

    casts: Casts

    def forward(self, maps: Maps, output_size: list[int] | None = None) -> Made:
        cast = self.casts.of(maps, self.weight, self.bias) if output_size is None else None
        if cast is None:
            return super().forward(maps, output_size)
        geometry = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return F.conv_transpose2d(maps, *cast, *geometry)  # type: ignore[arg-type]


class CastLinear(nn.Linear):
    """A linear layer whose weights never change."""

    casts: Casts

    def forward(self, features: Float[Tensor, "*b in_"]) -> Float[Tensor, "*b out_"]:
        cast = self.casts.of(features, self.weight, self.bias)
        return super().forward(features) if cast is None else F.linear(features, *cast)


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: CastConv2d,
    nn.ConvTranspose2d: CastConvTranspose2d,
    nn.Linear: CastLinear,
}


def _stays(part: Tensor) -> bool:
    """Whether it is a frozen weight in single precision that counts its changes, and nothing put there for one pass."""
    frozen = isinstance(part, nn.Parameter) and not part.requires_grad and not part.is_inference()
    return frozen and part.dtype == torch.float32
