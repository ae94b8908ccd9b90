"""bfloat16 in the networks of a search where it points the same way as single precision does on these very networks.

Only the passes through networks are affected. Latents, losses, the optimiser and what an attack returns are in single
precision, and so are the last steps of every gradient search.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.arithmetic import Arithmetic, Decision
from mi_audit.core.run import Run
from mi_audit.core.types import Labels
from mi_audit.nn.precision import autocast

VERSION = 2  # of what bfloat16 makes of a result; the first one computed the whole of an attack in it
LEAST = 0.8  # median cosine: on trained networks 0.89 led to equal ends, on an untrained one 0.63 led anywhere
ROWS = 8  # whose gradients are compared
POLISH = 10  # one step in so many, the last ones, is taken in single precision

Rows = Float[Tensor, "rows numbers"]

_log = logging.getLogger(__name__)


def mixed_steps(steps: int) -> int:
    """How many of the steps of a search may compute in bfloat16; the last tenth, and at least one, may not."""
    return steps - -(-steps // POLISH)


def spread(count: int, most: int) -> Labels:
    """At most `most` rows out of `count`, from the first to the last; neighbours are often restarts of one class."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def networks(run: Run, device: torch.device, *, exact: bool = False) -> torch.autocast:
    """The arithmetic of `run` for the networks that are passed inside; gradients are taken outside of it.

    A gradient inside would also round what guards itself on the way forward.
    """
    return autocast(str(device), "32" if exact else run.precision)


def decided(run: Run, stage: str, device: torch.device, show: Callable[[Run], Rows]) -> Run:
    """The run with the arithmetic that `stage` is to compute in; what was decided is kept in `run.decisions`.

    It depends on the networks and the first step alone: not on the batch size, a clock, or what was done before. Random
    numbers are the same in both arithmetics and are put back, and nothing counts as work or as a query.

    Args:
        run: With the arithmetic that is wanted.
        stage: Name of the search.
        device: Where it computes.
        show: Rows of what the search follows, one image at a time, under the arithmetic of the run it is given.
    """
    if run.precision == "32":
        return run
    counted = run.counted()
    exact, mixed = (_shown(show, run, device, precision) for precision in ("32", "bf16"))
    run.forget_since(counted)
    cosine, reason = _agreement(exact, mixed)
    decision = Decision(stage, run.precision, "32" if reason else "bf16", cosine, reason)
    run.decisions.append(decision)
    if reason:
        _log.warning("%s: computed in single precision instead of bfloat16: %s", stage, reason)
    return replace(run, precision=decision.used)


def _shown(show: Callable[[Run], Rows], run: Run, device: torch.device, precision: Arithmetic) -> Rows:
    """What `show` gives, in double precision; a target that is random in itself draws the same every time."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return show(replace(run, precision=precision, batch_size=1)).double()


def _agreement(exact: Rows, mixed: Rows) -> tuple[float | None, str]:
    """The median cosine between the rows, and why bfloat16 is refused; rows that are zero in both agree."""
    if not (exact.isfinite().all() and mixed.isfinite().all()):
        return None, "not all numbers are finite"
    lengths = exact.norm(dim=1) * mixed.norm(dim=1)
    both_zero = (exact == 0).all(dim=1) & (mixed == 0).all(dim=1)
    cosines = torch.where(
        both_zero, 1.0, (exact * mixed).sum(dim=1) / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    )
    cosine = round(float(cosines.median()), 4)
    if cosine >= LEAST:
        return cosine, ""
    return cosine, f"the median cosine between both is {cosine:.2f}, below {LEAST}"
