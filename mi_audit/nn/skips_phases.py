"""Training in two stages: first with whole skip connections, then with what `skips.scale` was asked for (TTS, SSF)."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mi_audit.core.defense import MAIN
from mi_audit.nn.skips import installed, scaled_blocks, set_factors


def begin(net: nn.Module, phase: str, *, last_full: str) -> None:
    """Switch to whole skip connections until the phase called `last_full` has passed, and away from them after it.

    Args:
        net: A network that `skips.scale` has changed.
        phase: What begins. A resumed training begins all its earlier phases once more, in their order.
        last_full: The last phase with whole skip connections; it comes before the main one.
    """
    begun = set[str]()
    for _, _, state in scaled_blocks(net):
        begun |= state.phases
        state.phases.add(phase)
    switch(net, full=phase == last_full or (phase != MAIN and not begun & {MAIN, last_full}))


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
