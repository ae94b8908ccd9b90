"""A convolution of StyleGAN2 with all that follows it, and its colours, with backward passes written by hand.

Autograd would keep the maps before and after each of scale, convolution, low-pass filter, demodulation, noise, bias,
leaky ReLU and clamp, and go over them again one operation at a time. This one keeps what goes in and what comes out.
Everything in it is a plain tensor operation, so that `torch.compile` can merge the elementwise ones into one kernel.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SLOPE = 0.2  # of the leaky ReLU
Maps = Float[Tensor, "b channels height width"]
PerChannel = Float[Tensor, "b channels"]


def styled(
    maps: Maps,
    style: Float[Tensor, "b channels"],
    gain: Float[Tensor, "b out"],
    weight: Float[Tensor, "_ _ 3 3"],
    taps: Float[Tensor, "out 1 4 4"] | None,
    planes: Float[Tensor, "2 height2 width2"],
    bias: Float[Tensor, " out"],
    clamp: float = math.inf,
) -> Float[Tensor, "b out height2 width2"]:
    """`clamp(leaky_relu(gain * conv(style * maps) + noise + bias))`; differentiable once in maps, style and gain.

    What the activation is multiplied by has to be in `gain`, noise and bias: leaky ReLU is positively homogeneous.

    Args:
        maps: Of the layer before.
        style: Scale of each of their channels.
        gain: Positive scale of each channel of the convolution.
        weight: Of a convolution, or with `taps` of a transposed one (inputs first), which doubles the side.
        taps: Low-pass filter after the transposed convolution, symmetric; the same for every channel.
        planes: The noise, and ones.
        bias: One per channel.
        clamp: The result is clamped to plus and minus this.
    """
    return _Styled.apply(maps, style, gain, weight, taps, planes, bias, clamp)


class _Styled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        maps: Tensor,
        style: Tensor,
        gain: Tensor,
        weight: Tensor,
        taps: Tensor | None,
        planes: Tensor,
        bias: Tensor,
        clamp: float,
    ) -> Tensor:
        scaled = maps * _spread(style)
        if taps is None:
            made = F.conv2d(scaled, weight, padding=1)
        else:
            made = F.conv2d(F.conv_transpose2d(scaled, weight, stride=2), taps, padding=1, groups=len(taps))
        made = made.mul_(_spread(gain)).add_(planes[0]).add_(bias[:, None, None])
        made = F.leaky_relu_(made, SLOPE)
        if clamp != math.inf:
            made = made.clamp_(-clamp, clamp)
        ctx.save_for_backward(maps, style, gain, weight, taps, planes, bias, made)
        ctx.clamp = clamp
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The gradients in maps, style and gain.

        With z what the activation is given and m its slope, `y = m z`, so that the slope in z times z is the slope in
        y times y: no map but y is needed for the gradient in `gain`, where `gain * conv = z - noise - bias`.
        """
        maps, style, gain, weight, taps, planes, bias, made = ctx.saved_tensors
        if ctx.clamp != math.inf:
            slope = slope.masked_fill(made.abs() >= ctx.clamp, 0)
        along = (slope * made).sum(dim=(2, 3))
        slope = torch.ops.aten.leaky_relu_backward(slope, made, SLOPE, True)  # by the sign of what came out
        by_noise, whole = (planes.flatten(1) @ slope.flatten(2).mT).unbind(1)
        of_gain = (along - by_noise - whole * bias) / gain
        slope = slope.mul_(_spread(gain))
        if taps is None:
            slope = F.conv_transpose2d(slope, weight, padding=1)
        else:
            slope = F.conv2d(F.conv2d(slope, taps, padding=2, groups=len(taps)), weight, stride=2)
        of_style = (slope * maps).sum(dim=(2, 3))
        of_maps = slope.mul_(_spread(style)) if ctx.needs_input_grad[0] else None
        return of_maps, of_style, of_gain, None, None, None, None, None


def coloured(maps: Maps, matrices: Float[Tensor, "b colours channels"]) -> Float[Tensor, "b colours height width"]:
    """A product of every pixel with the matrix of its image, `matrices @ pixel`; differentiable once in both."""
    return _Coloured.apply(maps, matrices)


class _Coloured(torch.autograd.Function):
    """Products with the few colours in their rows: autograd has them in the columns, which libraries are slow at.

    Pixels stay where they are, channels last.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, matrices: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(maps, matrices)
        return (maps.flatten(2).mT @ matrices.mT).mT.unflatten(2, maps.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor]:  # noqa: ANN401
        maps, matrices = ctx.saved_tensors
        flat = slope.flatten(2)
        of_maps = (flat.mT @ matrices).mT.unflatten(2, maps.shape[2:]) if ctx.needs_input_grad[0] else None
        return of_maps, flat @ maps.flatten(2).mT


def _spread(numbers: PerChannel) -> Float[Tensor, "b channels 1 1"]:
    return numbers[:, :, None, None]
