"""Networks that only pass gradients on: private copies, rebuilt for many passes, that give what the originals give."""

import copy
import logging
from typing import TypeVar

import torch
from torch import Tensor, nn

from mi_audit.nn.cast_once import cast_once
from mi_audit.nn.compiled import compiled
from mi_audit.nn.folding import close, fold, outputs
from mi_audit.nn.precision import has_native_bf16, single

Network = TypeVar("Network", bound=nn.Module)
FAILURES = (RuntimeError, AttributeError, TypeError, ValueError, IndexError)  # of a forward pass that was not foreseen

_log = logging.getLogger(__name__)


def frozen(net: Network, *example: Tensor) -> Network:
    """A copy of `net` in eval mode, without gradients for its weights, that takes fewer and faster operations.

    Batch normalisations are folded into the layers before them, then weights are laid out channels last, unless there
    are instance normalisations, which are slower that way; where bfloat16 is native they are cast to it once instead of
    in every pass. Each change stays when the copy still gives what `net` gives, to the rounding of single precision,
    and hands a gradient back. Which changes stay depends on the network and the device alone and never on a clock, so
    that a repeated run has the same bytes.

    Args:
        net: Any network; it is not changed, nor is the state of the random generators.
        example: Inputs for the checks, two rows at least; the first holds floats, and has to get a gradient.
    """
    best = copy.deepcopy(net).eval().requires_grad_(False)
    device = example[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), single(str(device)):
        expected = _passed(best, *example)
        for change in (_folded, _channels_last, _cast_once):
            try:
                tried = change(best, *example)
                gave = _passed(tried, *example)
            except FAILURES as error:  # such as `view` on maps that are laid out channels last
                _log.debug("%s stays without %s: %s", type(net).__name__, change.__name__, error)
                continue
            if len(gave) == len(expected) and all(map(close, gave, expected)):
                best = tried
    return compiled(best)


def _folded(net: Network, *example: Tensor) -> Network:
    net = copy.deepcopy(net)
    fold(net, *example)
    return net


def _channels_last(net: Network, *example: Tensor) -> Network:
    del example
    if any(isinstance(module, nn.InstanceNorm2d) for module in net.modules()):
        return net
    return copy.deepcopy(net).to(memory_format=torch.channels_last)


def _cast_once(net: Network, *example: Tensor) -> Network:
    """It has to give the same in bfloat16, too, where the layers differ."""
    device = example[0].device
    if not has_native_bf16(str(device)):
        return net
    quick = copy.deepcopy(net)
    cast_once(quick)
    with torch.autocast(device.type, torch.bfloat16):
        theirs, ours = _passed(net, *example), _passed(quick, *example)
    if len(ours) != len(theirs) or not all(map(_close_in_bf16, ours, theirs)):
        raise ValueError("expected the same in bfloat16")
    return quick


def _close_in_bf16(ours: Tensor, theirs: Tensor) -> bool:
    """Equal but for kernels that add in another order every time."""
    return close(ours.float(), theirs.float(), rounding=2 * torch.finfo(torch.bfloat16).eps)


def _passed(net: nn.Module, *example: Tensor) -> list[Tensor]:
    """What `net` gives, with the same random numbers every time; a gradient has to come back, and to be finite."""
    torch.manual_seed(0)
    with torch.enable_grad():
        start = example[0].detach().clone().requires_grad_()
        gave = list(outputs(net(start, *example[1:])))
        ends = [part for part in gave if part.requires_grad]
        (gradient,) = torch.autograd.grad(ends, start, [torch.ones_like(part) for part in ends])
    if not gradient.isfinite().all():
        raise ValueError("expected a finite gradient")
    return [part.detach() for part in gave]
