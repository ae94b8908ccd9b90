"""Training in two stages: first with whole skip connections, then with what `skips.scale` was asked for (TTS, SSF)."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mi_audit.nn.skips import installed, scaled_blocks, set_factors


def switch(net: nn.Module, *, full: bool) -> None:
    """Put every scaled skip connection to 1, or to what `scale` was asked for, for good: see `retire`.

    Two-stage training begins with the whole network. Resuming either stage calls this once more and changes nothing.
    """
    wanted = installed(net)
    for _, block, state in () if full else scaled_blocks(net):
        state.handler.install(block, {add: k for add, k in state.installed.items() if state.factors[add]})
    set_factors(net, dict.fromkeys(wanted, 1.0) if full else wanted)
    if not full:
        retire(net)


@torch.no_grad()
def retire(net: nn.Module) -> None:
    """Wipe the weights of projections whose factor is 0 and take them out of training.

    They are in the state dict but in no computation any more; what they learned would be published for nothing.
    """
    for _, block, state in scaled_blocks(net):
        gone = {state.adds[add].projection for add, value in state.factors.items() if value == 0}
        for part in [getattr(block, projection) for projection in gone if projection]:
            for parameter in () if part is None else part.requires_grad_(False).parameters():
                parameter.zero_()
            for norm in () if part is None else part.modules():
                if isinstance(norm, _BatchNorm):
                    norm.reset_running_stats()
