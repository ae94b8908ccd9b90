"""Factors of skip connections that learn: the sigmoid of one number per shortcut (SSF, as its project page has it)."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.nn.skips_joining import Handler


def check(block: nn.Module, factors: Mapping[str, float], handler: Handler, *, traced: bool) -> None:
    """Raise ConfigError where a factor of `block` cannot learn.

    Args:
        block: Before anything is changed.
        factors: What each factor begins with, by the name of its add.
        handler: Of the block.
        traced: Whether the block is of a class that nobody knows.
    """
    adds, name = handler.adds(block), type(block).__name__
    if traced or any(adds[add].kind == "dense" for add in factors):
        raise ConfigError(
            f"expected skip connections that are added, in a block of a known class, got {name}; its factors cannot "
            "learn, leave learnable out"
        )
    if not all(0 < value < 1 for value in factors.values()):
        raise ConfigError(f"expected factors between 0 and 1 to learn from, got {dict(factors)}; set for example 0.2")


def install(block: nn.Module, factors: Mapping[str, float]) -> dict[str, str]:
    """Give `block` one parameter per factor, `log(k / (1 - k))`; their names by that of the add."""
    names = {add: f"skip_logit_{add.replace('.', '_')}" for add in factors}
    weight = next(block.parameters())
    for add, value in factors.items():
        start = torch.tensor(math.log(value / (1 - value)), dtype=weight.dtype, device=weight.device)
        block.register_parameter(names[add], nn.Parameter(start))
    return names
