"""The layer as one operation against the plain composition, and its gradients against differences."""

import math

import pytest
import torch
from torch.nn import functional as F

from mi_audit.nn.epilogue import coloured, styled


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(up, side=4, inputs=3, outputs=2):
    """Maps, style and gain that take gradients, and the constants."""
    size = 2 * side if up else side
    maps, style, gain = numbers(2, inputs, side, side, seed=0), numbers(2, inputs, seed=1), numbers(2, outputs, seed=2)
    weight = numbers(*((inputs, outputs) if up else (outputs, inputs)), 3, 3, seed=3)
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    taps = (torch.outer(line, line) / 16).repeat(outputs, 1, 1, 1) if up else None
    planes = torch.stack([numbers(size, size, seed=4), torch.ones(size, size, dtype=torch.float64)])
    return (maps, style, gain.abs() + 0.1), (weight, taps, planes, numbers(outputs, seed=5))


def plain(maps, style, gain, weight, taps, planes, bias, clamp=math.inf):
    """One operation after the other; autograd goes back through them."""
    maps = maps * style[:, :, None, None]
    if taps is None:
        maps = F.conv2d(maps, weight, padding=1)
    else:
        maps = F.conv2d(F.conv_transpose2d(maps, weight, stride=2), taps, padding=1, groups=len(taps))
    maps = F.leaky_relu(maps * gain[:, :, None, None] + planes[0] + bias[:, None, None], 0.2)
    return maps.clamp(-clamp, clamp)


def slopes(function, moved, constants, *more):
    moved = tuple(one.clone().requires_grad_() for one in moved)
    made = function(*moved, *constants, *more)
    return made.detach(), *torch.autograd.grad((made * numbers(*made.shape, seed=6)).sum(), moved)


@pytest.mark.parametrize("clamp", [math.inf, 1.5])
@pytest.mark.parametrize("up", [False, True])
def test_it_is_the_plain_composition(up, clamp):
    moved, constants = layer(up)
    made, expected = slopes(styled, moved, constants, clamp), slopes(plain, moved, constants, clamp)
    assert (made[0].abs() == clamp).any() == (clamp < math.inf)
    for ours, theirs in zip(made, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("clamp", [math.inf, 1.5])
@pytest.mark.parametrize("up", [False, True])
def test_gradients_are_what_differences_say(up, clamp):
    moved, constants = layer(up, side=3)
    moved = tuple(one.clone().requires_grad_() for one in moved)
    assert torch.autograd.gradcheck(lambda *three: styled(*three, *constants, clamp), moved)


@pytest.mark.parametrize("up", [False, True])
def test_maps_laid_out_channels_last_stay_so_and_change_nothing(up):
    (maps, style, gain), (weight, taps, planes, bias) = layer(up, side=8, inputs=6, outputs=5)
    last = torch.channels_last
    made = slopes(
        styled, (maps.to(memory_format=last), style, gain), (weight.to(memory_format=last), taps, planes, bias)
    )
    assert made[0].is_contiguous(memory_format=last) and made[1].is_contiguous(memory_format=last)
    for ours, theirs in zip(made, slopes(plain, (maps, style, gain), (weight, taps, planes, bias)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


def test_the_gradient_that_comes_in_is_not_written_over():
    moved, constants = layer(up=False)
    maps = moved[0].clone().requires_grad_()
    made = styled(maps, *moved[1:], *constants)
    slope = numbers(*made.shape, seed=7)
    before = slope.clone()
    made.backward(slope)
    assert torch.equal(slope, before)


def test_a_second_derivative_is_refused():
    moved, constants = layer(up=False)
    maps = moved[0].clone().requires_grad_()
    made = styled(maps, *moved[1:], *constants)
    (slope,) = torch.autograd.grad(made.square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_colours_are_a_product_of_every_pixel_with_the_matrix_of_its_image(memory):
    moved = numbers(2, 5, 3, 4, seed=0).to(memory_format=memory), numbers(2, 3, 5, seed=1)
    made = slopes(coloured, moved, ())
    expected = slopes(lambda maps, matrices: torch.einsum("bchw,bkc->bkhw", maps, matrices), moved, ())
    for ours, theirs in zip(made, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(coloured, tuple(one.clone().requires_grad_() for one in moved))


def test_the_slopes_of_colours_lie_as_the_maps_of_the_loop_do():
    moved = numbers(2, 5, 8, 8, seed=0).to(memory_format=torch.channels_last), numbers(2, 3, 5, seed=1)
    assert slopes(coloured, moved, ())[1].is_contiguous(memory_format=torch.channels_last)
