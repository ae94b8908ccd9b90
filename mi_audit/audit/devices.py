"""When an accelerator can still be computed on, and what is said when it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mi_audit.core.errors import DeviceLost

POISON = ("CUDA error", "HIP error", "device-side assert", "_STATUS_EXECUTION_FAILED", "_STATUS_INTERNAL_ERROR")
HARMLESS = ("out of memory", "_ALLOC_FAILED", "_NOT_SUPPORTED")  # refused before anything was computed


def lost(error: BaseException, device: str) -> bool:
    """Whether the process cannot compute on `device` any more after `error`.

    An error that was raised on an accelerator outlives the call that caused it: everything that the process asks of the
    device afterwards fails, or cannot be trusted. Other processes are not affected.
    """
    text = str(error)
    poisoned = isinstance(error, torch.AcceleratorError) or any(sign in text for sign in POISON)
    return (poisoned and not any(sign in text for sign in HARMLESS)) or not answers(device)


def answers(device: str) -> bool:
    """Whether the device still computes; after some errors a process cannot use an accelerator any more."""
    try:
        return float(torch.ones(1, device=device).add(1).cpu()) == 2
    except RuntimeError as error:
        return "out of memory" in str(error)


def device_lost(error: BaseException, device: str, doing: str = "") -> DeviceLost:
    """What is said of a lost device, and what to do; `doing` names the job that met it."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    told = DeviceLost(
        f"expected the device {device} to answer, got {reason}{f' in {doing}' if doing else ''}; finished jobs are "
        "kept: type the command again to resume, or, when it stops at the same place, with another --device"
    )
    told.reason = reason
    return told


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """What is computed in this process outside any job, such as training and measuring.

    Raises:
        DeviceLost: The device was lost in the block.
    """
    try:
        yield
    except RuntimeError as error:
        if lost(error, device):
            raise device_lost(error, device) from error
        raise
