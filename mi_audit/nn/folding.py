"""Batch normalisations of a frozen network, multiplied into the layers before them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.graph import Node

LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
ROUNDING = 1e-4  # largest difference that folding may make, relative to the largest value


class Pair(NamedTuple):
    """A layer, the normalisation that alone reads what it gives, and one pass through both."""

    layer: nn.Module
    norm: nn.Module
    entered: Tensor
    left: Tensor


class _Call(NamedTuple):
    module: nn.Module
    entered: Tensor
    node: Node | None  # of the autograd graph: who made the input of a normalisation, or the output of a layer
    left: Tensor


def fold(net: nn.Module, *example: Tensor) -> int:
    """Multiply batch normalisations into the convolutions and linear layers before them, in place.

    A pair is folded when one pass calls each of the two once, the normalisation reads exactly what the layer gave, no
    other operation reads it, and layer and normalisation together give the same afterwards as before, to `ROUNDING`.

    Args:
        net: In eval mode; its parameters are replaced.
        example: Inputs for the pass; the first one is a batch of floats.

    Returns:
        How many normalisations were folded.
    """
    folded = 0
    for pair in _pairs(net, *example):
        weight, bias = _multiplied(pair.layer, pair.norm)
        old = pair.layer._parameters["weight"], pair.layer._parameters["bias"]
        pair.layer._parameters.update(weight=weight, bias=bias)
        after = _after(pair.norm)
        with torch.no_grad():
            same = close(after(pair.layer(pair.entered)), pair.left)
        if same:
            _replace(net, pair.norm, after)
            folded += 1
        else:
            pair.layer._parameters.update(weight=old[0], bias=old[1])
    return folded


def close(ours: Tensor, theirs: Tensor, rounding: float = ROUNDING) -> bool:
    """Whether both are finite and differ by at most `rounding` times the largest value."""
    if ours.shape != theirs.shape:
        return False
    allowed = rounding * theirs.abs().max().clamp_min(1e-6)
    return bool((ours - theirs).abs().max() <= allowed)  # False for NaN


def _pairs(net: nn.Module, *example: Tensor) -> list[Pair]:
    calls: list[_Call] = []
    with _watching(net, calls), torch.enable_grad():
        result = net(example[0].detach().requires_grad_(), *example[1:])
    times = Counter(call.module for call in calls)
    readers = _readers([output for output in outputs(result) if output.grad_fn is not None])
    made = {call.node: call for call in calls if isinstance(call.module, LINEAR) and call.node is not None}
    pairs = []
    for call in calls:
        node = call.node
        if type(call.module) not in NORMS or node is None or node not in made:
            continue
        source = made[node]
        once = times[call.module] == times[source.module] == readers[node] == 1
        if once and source.left is call.entered and _channels(source.module) == _width(call.module):
            pairs.append(Pair(source.module, call.module, source.entered.detach(), call.left))
    return pairs


@contextmanager
def _watching(net: nn.Module, calls: list[_Call]) -> Iterator[None]:
    """Note every call of a layer or a normalisation that nobody hooks into or computes the weights of."""

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nodes[module] = inputs[0].grad_fn  # now, because what comes may write over its input

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        node = output.grad_fn if isinstance(module, LINEAR) else nodes[module]
        calls.append(_Call(module, inputs[0], node, output if isinstance(module, LINEAR) else output.detach().clone()))

    nodes: dict[nn.Module, Node | None] = {}
    handles = []
    for module in [module for module in net.modules() if _foldable(module)]:
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _foldable(module: nn.Module) -> bool:
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, LINEAR):
        return module._parameters.get("weight") is not None and "bias" in module._parameters
    return type(module) in NORMS and not module.training and module._buffers.get("running_mean") is not None


def _readers(outputs: list[Tensor]) -> Counter[Node]:
    """How many operations on the way to `outputs` read what each node of the graph made."""
    readers: Counter[Node] = Counter()
    seen, left = set[Node](), [output.grad_fn for output in outputs if output.grad_fn is not None]
    readers.update(left)
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        sources = [source for source, _ in node.next_functions if source is not None]
        readers.update(sources)
        left += sources
    return readers


def outputs(result: object) -> Iterator[Tensor]:
    """The tensors in what a network returned."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for part in result:
            yield from outputs(part)


@torch.no_grad()
def _multiplied(layer: nn.Module, norm: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights and biases of both in one: `gain (w x + b - mean) + shift`, the gain being over the deviation."""
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    mean, variance = norm._buffers["running_mean"], norm._buffers["running_var"]
    assert weight is not None and mean is not None and variance is not None
    gain = (variance.double() + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
    if norm._parameters["weight"] is not None:
        gain = gain * norm._parameters["weight"].double()
    shift = (0 if bias is None else bias.double()) - mean.double()
    shift = shift * gain + (0 if norm._parameters["bias"] is None else norm._parameters["bias"].double())
    shape = [1] * weight.ndim
    shape[_axis(layer)] = -1
    scaled = (weight.double() * gain.view(shape)).to(weight.dtype)
    return nn.Parameter(scaled, requires_grad=False), nn.Parameter(shift.to(weight.dtype), requires_grad=False)


def _axis(layer: nn.Module) -> int:
    return 1 if isinstance(layer, TRANSPOSED) else 0


def _channels(layer: nn.Module) -> int:
    """Outputs that have weights of their own; fewer than the layer has when it is transposed and in groups."""
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight.shape[_axis(layer)]


def _width(norm: nn.Module) -> int:
    mean = norm._buffers["running_mean"]
    assert mean is not None
    return len(mean)


def _after(norm: nn.Module) -> nn.Module:
    """What is left of a normalisation once it is folded: the activation that some carry along."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()


def _replace(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
