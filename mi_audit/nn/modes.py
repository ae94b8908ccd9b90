"""Training and eval mode of networks for a while: every module gets its own mode back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def keeping_modes(*networks: nn.Module) -> Iterator[None]:
    """Whatever mode modules are put into inside, each has its own again afterwards.

    A mode per module, because batch norms of frozen layers stay in eval mode while the network trains.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Eval mode inside, so that no running statistic moves; then every module gets its own mode back."""
    with keeping_modes(*networks):
        for network in networks:
            network.eval()
        yield
