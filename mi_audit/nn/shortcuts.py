"""Faint changes of images that make a network see another class: what trapdoors and anti-adversarial training share."""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_audit.core.types import Images, Labels, Scalar
from mi_audit.nn.modes import evaluating
from mi_audit.nn.objectives import cross_entropy

GUESSING = "guessing_loss"


def push_notes(missed: Scalar, name: str, classes: int) -> dict[str, Scalar]:
    """The cross-entropy with the classes that images are pushed to, under `name`, beside that of guessing."""
    return {name: missed.detach(), GUESSING: missed.new_full((), math.log(classes))}


def hardly_pushed(notes: Mapping[str, float], name: str) -> str:
    """Both losses of `push_notes` in words when the first is not half the way down from guessing; else empty."""
    missed, guessing = notes.get(name, 0.0), notes.get(GUESSING, 0.0)
    return "" if missed <= guessing / 2 else f"({name} {missed:.2f}, guessing has {guessing:.2f})"


def slope(loss: Callable[[Tensor], Scalar], point: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Gradient of `loss` at `point`; no parameter on the way receives one, and frozen parameters do not stop it."""
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        (found,) = torch.autograd.grad(loss(point), point)
    return found


def mislead(
    network: nn.Module, images: Images, labels: Labels, start: Images, *, reach: float, step: float, steps: int
) -> Images:
    """Images close to `images` that `network`, in eval mode, takes for `labels`: projected sign descent.

    `x <- clip(x - step * sign(d/dx cross_entropy(network(x), label)))`, Madry et al., ICLR 2018, targeted.

    Args:
        network: Maps images to logits; its modes, statistics and gradients are left alone.
        images: In [0, 1].
        labels: What each image is to be taken for.
        start: Numbers in [0, 1) that place the start uniformly in the box.
        reach: Largest change of a pixel.
        step: Change of a pixel per step.
        steps: Number of steps.

    Returns:
        Images in [0, 1], without graph.
    """
    low, high = (images - reach).clamp_min(0), (images + reach).clamp_max(1)
    near = (images + reach * (2 * start - 1)).clamp(low, high)

    def distance(seen: Tensor) -> Scalar:
        return cross_entropy(network(seen), labels).sum()  # a sum, so that rows do not depend on the batch

    with evaluating(network):
        for _ in range(steps):
            near = (near - step * slope(distance, near).sign()).clamp(low, high)
    return near.detach()
