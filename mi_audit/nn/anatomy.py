"""The units of a network in the order in which they run: residual or transformer blocks, dense layers, convolutions."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mi_audit.core.errors import ConfigError
from mi_audit.core.types import Images
from mi_audit.nn.classifier import Head
from mi_audit.nn.modes import evaluating

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
OPERATORS = (nn.Linear, _ConvNd)


@dataclass(frozen=True, slots=True)
class Unit:
    """One step of depth.

    Attributes:
        name: Dotted name of the module that defines it.
        kind: Class name of that module: `BasicBlock`, `Conv2d`, ...
        parameters: Names of its parameters, with those of the layers that run between the unit before and this one.
        stage: Dotted name of the part of the network it belongs to, or its output resolution where units lie flat.
    """

    name: str
    kind: str
    parameters: tuple[str, ...]
    stage: str


@dataclass(frozen=True, slots=True)
class Call:
    """When a module first ran, in ticks of one forward pass, and on which shapes (empty when it got no tensor)."""

    start: int
    end: int
    took: tuple[int, ...]
    gave: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What one traced forward pass showed.

    Attributes:
        units: In execution order; layers before the first belong to it, layers after the last and the head to none.
        head: Dotted name of the last linear layer or convolution that ran, or of the `Head` that it is part of.
        trunk: Dotted name of the lowest module that contains all units.
        calls: Every module that ran.
        moments: Tick at which each parameter is first used; infinite when it is not.
    """

    units: tuple[Unit, ...]
    head: str
    trunk: str
    calls: Mapping[str, Call]
    moments: Mapping[str, float]

    def until(self, name: str) -> tuple[str, ...]:
        """Names of the parameters in use up to the end of the module `name`."""
        return tuple(parameter for parameter, tick in self.moments.items() if tick < self.calls[name].end)


def units(model: nn.Module, example: Images) -> tuple[Unit, ...]:
    """The units of `model`, in the order in which they run on `example`, without head and final norm."""
    return dissect(model, example).units


def dissect(model: nn.Module, example: Images) -> Anatomy:
    """Run `model` once in eval mode and find its units.

    A unit is a module with children that stands in a container (`Sequential`, `ModuleList`, `ModuleDict`); a module
    that itself holds a list of alike blocks is a stage, not a unit. Networks without such blocks are divided into
    convolutions with their norm and activation, and those without convolutions into linear layers.

    Raises:
        ConfigError: No linear layer and no convolution ran.
    """
    modules = dict(model.named_modules())
    calls = _calls(model, modules, example)
    operators = sorted((n for n in calls if isinstance(modules[n], OPERATORS)), key=lambda name: calls[name].start)
    if not operators:
        raise ConfigError(
            f"expected a network with a linear layer or a convolution, got {type(model).__name__} without"
        )
    head = next((n for n in _ancestors(operators[-1]) if isinstance(modules[n], Head)), operators[-1])
    operators = [name for name in operators[:-1] if head not in _ancestors(name)] + operators[-1:]
    ends = _blocks(modules, calls, operators) or _operators(modules, calls, operators)
    moments = _moments(modules, calls, tuple(ends))
    members = _members(ends, moments)
    trunk = _common(tuple(ends))
    found = tuple(
        Unit(name, type(modules[name]).__name__, members[name], _stage(name, trunk, calls[name].gave)) for name in ends
    )
    return Anatomy(found, head, trunk, calls, moments)


def _calls(model: nn.Module, modules: Mapping[str, nn.Module], example: Images) -> dict[str, Call]:
    began: dict[str, int] = {}
    calls: dict[str, Call] = {}

    def enter(name: str, module: nn.Module, inputs: tuple[object, ...]) -> None:
        del module, inputs
        began.setdefault(name, len(began) + len(calls))

    def leave(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        del module
        calls.setdefault(name, Call(began[name], len(began) + len(calls), _shape(inputs), _shape((output,))))

    hooks = [module.register_forward_pre_hook(partial(enter, name)) for name, module in modules.items()]
    hooks += [module.register_forward_hook(partial(leave, name)) for name, module in modules.items()]
    try:
        with torch.no_grad(), evaluating(model):
            model(example[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _shape(values: tuple[object, ...]) -> tuple[int, ...]:
    return next((tuple(value.shape) for value in values if isinstance(value, Tensor)), ())


def _blocks(modules: Mapping[str, nn.Module], calls: Mapping[str, Call], operators: Sequence[str]) -> dict[str, int]:
    """Block -> tick of its end, in execution order; empty when the blocks hold less than half of the operators."""
    transparent = {type(module) for module in modules.values() if _is_stage(module)}
    transparent |= {type(modules[name]) for name in _ancestors(operators[-1])}
    found = [name for name in _candidates("", modules, transparent, inside=False) if name in calls]
    covered = sum(not set(found).isdisjoint(_ancestors(name)) for name in operators)
    if 2 * covered < len(operators):
        return {}
    return {name: calls[name].end for name in sorted(found, key=lambda name: calls[name].start)}


def _candidates(
    name: str, modules: Mapping[str, nn.Module], transparent: set[type[nn.Module]], *, inside: bool
) -> list[str]:
    """Names of the outermost modules with children that stand in containers, without the transitions between stages."""
    module = modules[name]
    if inside and _composite(module) and type(module) not in transparent:
        return [name]
    paths = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
    below = {
        path: _candidates(path, modules, transparent, inside=isinstance(module, CONTAINERS))
        for path in paths
        if path in modules  # a shared module is listed under its first name only
    }
    deeper = {type(modules[found]) for path, names in below.items() for found in names if found != path}
    return [n for path, names in below.items() for n in names if not deeper or n != path or type(modules[n]) in deeper]


def _composite(module: nn.Module) -> bool:
    """True for a module that is neither a container nor an operator and has operators inside."""
    plain = isinstance(module, (*CONTAINERS, *OPERATORS, nn.MultiheadAttention))
    return not plain and any(isinstance(part, OPERATORS) for part in module.modules())


def _is_stage(module: nn.Module) -> bool:
    """True when a container below `module` holds nothing but two or more modules with children, of one class."""
    rows = (list(part.children()) for part in module.modules() if isinstance(part, CONTAINERS))
    return any(len(row) > 1 and _composite(row[0]) and len({type(item) for item in row}) == 1 for row in rows)


def _operators(modules: Mapping[str, nn.Module], calls: Mapping[str, Call], operators: Sequence[str]) -> dict[str, int]:
    """Convolution (or else linear layer) -> tick at which its norm and activation end, in execution order."""
    hidden = operators[:-1]
    convolutions = [n for n in hidden if isinstance(modules[n], _ConvNd) and not _dense(modules[n], calls[n])]
    starts = [calls[name].start for name in operators]
    ends = {}
    for name in convolutions or hidden:
        own = calls[name]
        stop = starts[bisect_right(starts, own.start)]
        tail = [call for other, call in calls.items() if own.end < call.start < stop and _scales(modules[other])]
        ends[name] = max([own.end, *(call.end for call in tail if len(call.took) == len(own.gave))])
    return ends


def _dense(module: nn.Module, call: Call) -> bool:
    """True for a convolution that covers its whole input: a linear layer in disguise."""
    return isinstance(module, _ConvNd) and module.kernel_size == call.took[2:] and set(call.gave[2:]) == {1}


def _scales(module: nn.Module) -> bool:
    """True for a layer that scales channels: a norm or a learned activation."""
    own = tuple(module.parameters(recurse=False))
    return bool(own) and all(parameter.dim() <= 1 for parameter in own)


def _moments(modules: Mapping[str, nn.Module], calls: Mapping[str, Call], names: Sequence[str]) -> dict[str, float]:
    """When each parameter is first used; loose parameters of a module that contains units, with the first of them."""
    inner: dict[str, int] = {}
    for name in names:
        for ancestor in _ancestors(name)[1:]:
            inner.setdefault(ancestor, calls[name].start)
    moments: dict[str, float] = {}
    for owner, module in modules.items():
        unit = next((name for name in _ancestors(owner) if name in names), owner)
        called = next((calls[name] for name in (owner, _attention(owner, modules), unit) if name in calls), None)
        tick = inner.get(owner, called.start if called else inf)
        for name, _ in module.named_parameters(recurse=False):
            moments[f"{owner}.{name}" if owner else name] = float(tick)
    return moments


def _attention(owner: str, modules: Mapping[str, nn.Module]) -> str:
    """The attention module that uses the weights of `owner` without calling it, or `owner` itself."""
    parent = owner.rpartition(".")[0]
    return parent if owner and isinstance(modules[parent], nn.MultiheadAttention) else owner


def _members(ends: Mapping[str, int], moments: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    names, ticks = list(ends), list(ends.values())
    members: dict[str, list[str]] = {name: [] for name in names}
    for parameter, tick in moments.items():
        place = bisect_right(ticks, tick)
        if place < len(names):
            members[names[place]].append(parameter)
    return {name: tuple(parameters) for name, parameters in members.items()}


def _stage(name: str, trunk: str, gave: tuple[int, ...]) -> str:
    prefix = f"{trunk}." if trunk else ""
    child = prefix + name.removeprefix(prefix).split(".")[0]
    return child if child != name else "x".join(str(side) for side in gave[2:])


def _common(names: tuple[str, ...]) -> str:
    """The longest dotted prefix of all names that is none of them."""
    shared = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _ancestors(name: str) -> list[str]:
    """`a.b.c`, `a.b`, `a` and the empty name of the network itself."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]
