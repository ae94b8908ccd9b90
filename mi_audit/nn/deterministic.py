"""Operations that give the same results every time, or none."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mi_audit.core.errors import NotDeterministic

WORKSPACE = (
    "CUBLAS_WORKSPACE_CONFIG"  # matrix products take a fixed buffer; read once, at the first product of a process
)
FIXED = ":4096:8"
NAMED = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside the block, every operation gives the same results for the same inputs on the same device.

    Without it accelerators add in the order in which their threads come, so that last bits differ from run to run. The
    settings of torch are put back on leaving.

    Raises:
        NotDeterministic: An operation in the block has no such version; the message names it.
    """
    if not wanted:
        yield
        return
    cudnn, variable = torch.backends.cudnn, os.environ.get(WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    chosen = cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault(WORKSPACE, FIXED)
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if (reason := _reason(error)) is None:
            raise
        raise NotDeterministic(reason) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = chosen
        if variable is None:
            os.environ.pop(WORKSPACE, None)


def _reason(error: RuntimeError) -> str | None:
    """What to tell the user when torch refused an operation for what it is."""
    if found := NAMED.search(str(error)):
        return (
            f"expected operations with a deterministic version, got {found[1]}; leave out --deterministic, leave out "
            "the method that uses it, or use --device cpu"
        )
    if WORKSPACE in str(error):
        return (
            f"expected {WORKSPACE} to be set before the first matrix product of this process, got none; "
            f"set the variable to {FIXED} before Python starts"
        )
    return None
