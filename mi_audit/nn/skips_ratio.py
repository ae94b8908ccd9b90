"""How much of what leaves a block with a scaled skip connection came over the shortcut."""

import torch
from torch import Tensor, nn

from mi_audit.nn.modes import evaluating
from mi_audit.nn.skips import scaled_blocks


@torch.no_grad()
def ratios(net: nn.Module, images: Tensor) -> dict[str, float]:
    """`|k S(x)| / |F(x)|` of every changed skip connection that ran, with norms over the whole batch.

    With batch norms behind the branches a network can undo a factor above 0 by larger branches below it: a ratio that
    is back at what it is in an undefended network says that it did.

    Args:
        net: In any mode; runs in evaluation.
        images: As `net` is fed.

    Returns:
        By name of the skip connection; empty for a stock network, which is not run.
    """
    found = list(scaled_blocks(net))
    if not found:
        return {}
    for _, _, state in found:
        state.ratios.update(dict.fromkeys(state.installed))
    try:
        with evaluating(net):
            net(images)
        return {
            f"{name}.{add}": float(ratio)
            for name, _, state in found
            for add, ratio in state.ratios.items()
            if ratio is not None
        }
    finally:
        for _, _, state in found:
            state.ratios.clear()
