"""How a block whose skip connections are scaled joins branch and shortcut, and what describes such a block."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

Kind = Literal["identity", "projection", "norm", "dense"]
TINY = 1e-12  # of norms, against 0 / 0
WEAK = 0.5  # below it a dropped branch would leave next to nothing of the block


class Add(NamedTuple):
    """One skip connection of a block.

    Attributes:
        kind: What the shortcut is: the input itself, a projection of it with weights, its batch norm (RepVGG), or the
            channels that a dense block carries over.
        projection: Attribute of the block that holds the shortcut's weights; empty without weights.
    """

    kind: Kind
    projection: str = ""


IDENTITY = Add("identity")


def _untouched(block: Any, factors: Mapping[str, float]) -> None:  # noqa: ANN401
    """No other change than the class."""


@dataclass(frozen=True, slots=True)
class Handler:
    """How to scale the skip connections of blocks of one class.

    Attributes:
        scaled: Subclass of the block's class whose forward repeats the stock computation and joins with `join`.
        adds: The skip connections of a stock block; empty when this one has none.
        install: Called with a block and the factors by add, before its class changes; again when other weights were
            loaded, and when shortcuts go later. What is done already it leaves alone.
        channels_last: Whether the block gives `b ... c` instead of `b c ...`.
    """

    scaled: type[nn.Module]
    adds: Callable[[Any], Mapping[str, Add]]
    install: Callable[[Any, Mapping[str, float]], None] = _untouched
    channels_last: bool = False


@dataclass(frozen=True, slots=True)
class Scaling:
    """The state of a scaled block, its attribute `skip_scaling`.

    Attributes:
        handler: What describes the block.
        adds: Its skip connections as they were before, by the name of their add.
        factors: What each shortcut is multiplied by now, from 0 to 1; changes in place.
        installed: The factors that the surgery asked for.
        idle_projections: Whether a training begins with whole shortcuts, so that nothing of them is gone yet.
        phases: Names of the phases of the training that have begun.
        learned: Parameter of the block whose sigmoid is the factor, by the name of the add, for factors that learn.
        ratios: Norm of the scaled shortcut over that of what it is added to, for the adds that are being measured.
    """

    handler: Handler
    adds: Mapping[str, Add]
    factors: dict[str, float]
    installed: Mapping[str, float]
    idle_projections: bool = False
    phases: set[str] = field(default_factory=set)
    learned: Mapping[str, str] = field(default_factory=dict)
    ratios: dict[str, Tensor | None] = field(default_factory=dict)


Handlers = Mapping[type[nn.Module], Handler]


def scaling(block: nn.Module) -> Scaling | None:
    """The state of a scaled block; None for a stock one."""
    return cast(Scaling | None, block.__dict__.get("skip_scaling"))


def factor(block: nn.Module, add: str) -> float | Tensor:
    """What the shortcut of `add` is multiplied by in a scaled block: a number, or one that learns; 1 where it is stock.

    A factor that learns is the sigmoid of its parameter, except while the shortcut is whole.
    """
    state, k = scaling(block), asked(block, add)
    if state is None or add not in state.learned or k == 1:
        return k
    learned: Tensor = getattr(block, state.learned[add])
    return learned.sigmoid()


def asked(block: nn.Module, add: str) -> float:
    """The factor that was asked for, where it learns: what it began with."""
    state = scaling(block)
    return 1.0 if state is None else state.factors.get(add, 1.0)


def watched(block: nn.Module, add: str) -> bool:
    """Whether the ratio of this add is being measured."""
    state = scaling(block)
    return state is not None and add in state.ratios


def note(state: Scaling | None, add: str, shortcut: Tensor | None, others: Tensor) -> None:
    """Keep the ratio of the two norms, over the whole batch, if somebody measures; without a shortcut it is 0."""
    if state is not None and add in state.ratios:
        norms = (others.new_zeros(()) if shortcut is None else shortcut.float().norm(), others.float().norm())
        state.ratios[add] = norms[0] / norms[1].clamp_min(TINY)


def join(
    block: nn.Module,
    add: str,
    branch: Tensor,
    inputs: Tensor,
    *,
    projection: nn.Module | None = None,
    drop_path: nn.Module | None = None,
    shortcut_first: bool = False,
) -> Tensor:
    """`branch + k projection(inputs)`; a factor `k` of 1 is bit-exact, at 0 the shortcut is not computed at all.

    Args:
        block: The scaled block.
        add: Which of its adds.
        branch: What the block's layers made of `inputs`.
        inputs: What the shortcut takes.
        projection: The shortcut's layers; None passes `inputs` on.
        drop_path: Stochastic depth of the branch. It is left out below a factor of one half, where a dropped branch
            would leave (nearly) nothing.
        shortcut_first: The stock block writes `shortcut + branch`; the memory layout of a sum, and with it the last
            bits of what follows, goes by its first term.
    """
    k = factor(block, add)
    if drop_path is not None and asked(block, add) >= WEAK:
        branch = drop_path(branch)
    if asked(block, add) == 0:
        note(scaling(block), add, None, branch)
        return branch
    shortcut = inputs if projection is None else projection(inputs)
    shortcut = k * shortcut if isinstance(k, Tensor) or k != 1 else shortcut
    note(scaling(block), add, shortcut, branch)
    return shortcut + branch if shortcut_first else branch + shortcut


def carried(channels: Tensor, k: float, dim: int = 1) -> Tensor:
    """The first `round(k C)` of `C` channels, with zeros in the place of the others; at 1 the tensor itself."""
    if k == 1:
        return channels
    kept = round(k * channels.shape[dim])
    rest = torch.zeros_like(channels.narrow(dim, kept, channels.shape[dim] - kept))
    return torch.cat([channels.narrow(dim, 0, kept), rest], dim)
