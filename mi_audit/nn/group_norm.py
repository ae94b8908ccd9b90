"""Group normalisation in the place of batch normalisation, which mixes the images of a batch while it trains."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mi_audit.core.errors import ConfigError
from mi_audit.nn.freezing import train_mode
from mi_audit.nn.modes import keeping_modes

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
MOST_GROUPS = 32  # Wu & He, "Group Normalization", ECCV 2018


class GroupNormThen(nn.GroupNorm):
    """A group normalisation with the dropout and activation that some libraries keep inside their batch normalisation.

    Args:
        groups, channels: As in `GroupNorm`.
        eps: Added to the variance.
        affine: Whether it has weight and bias.
        drop, act: What follows.
    """

    def __init__(self, groups: int, channels: int, eps: float, affine: bool, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(groups, channels, eps, affine)
        self.drop, self.act = drop, act

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def training_batch_norms(net: nn.Module) -> tuple[str, ...]:
    """Dotted names of the batch normalisations of `net` that would use the statistics of the batch in training.

    Those of frozen layers do not, see `freezing.train_mode`. `net` is left as it was.
    """
    with keeping_modes(net):
        train_mode(net)
        return tuple(name for name, module in net.named_modules() if isinstance(module, _BatchNorm) and module.training)


def group_norm(net: nn.Module, *, modules: object) -> None:
    """Replace the named batch normalisations of `net` in place; they keep their weight and bias.

    The number of groups is the largest that divides both the channels and 32; features without positions, as in
    `BatchNorm1d`, are one group, because a group of a single number normalises to zero.

    Raises:
        ConfigError: A module is not there, or is no batch normalisation that is known.
    """
    if not isinstance(modules, Sequence) or isinstance(modules, str):
        raise ConfigError(f"expected a list of names as modules, got {type(modules).__name__}; correct it")
    there = dict(net.named_modules())
    for name in modules:
        if name not in there or not _known(there[name]):
            found = type(there[name]).__name__ if name in there else "nothing"
            raise ConfigError(f"expected a batch normalisation at {name!r}, got {found}; freeze it or replace it")
        owner, _, own = name.rpartition(".")
        setattr(there[owner], own, _replacement(there[name]))


def _known(module: nn.Module) -> bool:
    return type(module) in PLAIN or (isinstance(module, PLAIN) and len(_following(module)) == 2)


def _following(module: nn.Module) -> list[nn.Module]:
    """Dropout and activation inside a batch normalisation, where it has both."""
    found = (getattr(module, name, None) for name in ("drop", "act"))
    return [one for one in found if isinstance(one, nn.Module)]


def _replacement(old: nn.Module) -> nn.GroupNorm:
    assert isinstance(old, _BatchNorm)
    groups = 1 if isinstance(old, nn.BatchNorm1d) else math.gcd(MOST_GROUPS, old.num_features)
    new = (
        nn.GroupNorm(groups, old.num_features, old.eps, old.affine)
        if type(old) in PLAIN
        else GroupNormThen(groups, old.num_features, old.eps, old.affine, *_following(old))
    )
    if old.affine:
        new.weight, new.bias = old.weight, old.bias
    return new.train(old.training)
