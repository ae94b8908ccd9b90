"""Where the stages of a network end: the modules whose outputs stand for its hidden layers."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from mi_audit.core.errors import ConfigError
from mi_audit.core.types import Images
from mi_audit.nn.anatomy import Anatomy, dissect
from mi_audit.nn.modes import evaluating

MOST_STAGES = 8  # of EfficientNet there are 7; networks with more name every block a stage
SPREAD = 4  # layers that stand for a network without usable stages


def hidden_layers(model: nn.Module, example: Images, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Dotted names of the modules whose outputs are the hidden layers, in the order in which they run.

    By default these are the ends of the stages (in plain networks after activation and pooling), and the last layer of
    a bottleneck between them and the head. A network of one stage, or of very many, gives four at equal distances. What
    no trainable parameter acts on is left out, and so is what runs more than once in a pass.

    Args:
        model: Any classifier, with its layers frozen already.
        example: Images to trace it with.
        wanted: Names to take instead; wrappers such as `net.` need not be spelled out.

    Raises:
        ConfigError: A wanted module does not run exactly once, or nothing before the head learns.
    """
    anatomy, once = dissect(model, example), _run_once(model, example)
    found = [_named(name, once) for name in wanted] if wanted else _ends(model, anatomy, once)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = [name for name in found if not learning.isdisjoint(anatomy.until(name))]
    if not kept:
        raise ConfigError(
            f"expected a hidden layer that learns, got none among {', '.join(found) or 'the stages'}; freeze less"
        )
    return tuple(sorted(set(kept), key=lambda name: anatomy.calls[name].end))


def _run_once(model: nn.Module, example: Images) -> set[str]:
    """Names of the modules that run once in a pass and give a tensor; dropout, which only adds noise, is left out."""
    runs: Counter[str] = Counter()

    def count(name: str, module: nn.Module, inputs: object, output: object) -> None:
        del module, inputs
        runs[name] += 1 if isinstance(output, torch.Tensor) else 2

    hooks = [
        module.register_forward_hook(partial(count, name))
        for name, module in model.named_modules()
        if name and not isinstance(module, _DropoutNd)
    ]
    try:
        with torch.no_grad(), evaluating(model):
            model(example[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name, number in runs.items() if number == 1}


def _ends(model: nn.Module, anatomy: Anatomy, once: set[str]) -> list[str]:
    units = anatomy.units
    last = list({unit.stage: place for place, unit in enumerate(units)}.values())
    if len(last) == 1:
        last = _spread(range(len(units)))
    elif len(last) > MOST_STAGES:
        last = _spread(last)
    starts = [anatomy.calls[unit.name].start for unit in units] + [anatomy.calls[anatomy.head].start]
    children = [name for name in once if name.rpartition(".")[0] == anatomy.trunk]
    found = []
    for place in last:
        unit = units[place]
        whole = [unit.stage] if unit.stage in once and _is_last(place, anatomy) else []
        after = [name for name in children if starts[place] <= anatomy.calls[name].start < starts[place + 1]]
        found.append(max(whole or after or [unit.name], key=lambda name: anatomy.calls[name].end))
    return found + _bottleneck(model, anatomy, once)


def _spread(places: Sequence[int]) -> list[int]:
    """Four of `places` at equal distances, the last among them; all when there are fewer."""
    count = len(places)
    return list(dict.fromkeys(places[math.ceil((step + 1) * count / SPREAD) - 1] for step in range(min(SPREAD, count))))


def _is_last(place: int, anatomy: Anatomy) -> bool:
    return place + 1 == len(anatomy.units) or anatomy.units[place + 1].stage != anatomy.units[place].stage


def _bottleneck(model: nn.Module, anatomy: Anatomy, once: set[str]) -> list[str]:
    """The last module before the head when a hidden linear layer lies behind the last unit, else nothing."""
    calls, head = anatomy.calls, anatomy.calls[anatomy.head].start
    begin = max((calls[unit.name].end for unit in anatomy.units), default=0)
    behind = [name for name in once if begin <= calls[name].start < head]
    leaves = [name for name in behind if not any(model.get_submodule(name).children())]
    linear = [calls[name].start for name in leaves if isinstance(model.get_submodule(name), nn.Linear)]
    flat = [name for name in leaves if linear and calls[name].start >= max(linear) and len(calls[name].gave) == 2]
    return [max(flat, key=lambda name: calls[name].end)] if flat else []


def _named(wanted: str, once: set[str]) -> str:
    found = [name for name in once if name == wanted or name.endswith(f".{wanted}")]
    found = [name for name in found if name.count(".") == min(other.count(".") for other in found)]
    if len(found) != 1:
        raise ConfigError(
            f"expected one module that runs once and gives a tensor, got {len(found)} called {wanted!r}; "
            "name another, or leave layers at auto"
        )
    return found[0]
