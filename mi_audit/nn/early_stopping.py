"""Which rows of a gradient search have converged, so that they leave the batch and the others go on without them.

Stopping and compaction change what a search costs, and a little of what it finds: the decision rests on the loss of the
target, and an independent evaluator may have gained from the steps that were left out. After steps in mixed precision a
row takes a few exact ones before it leaves.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mi_audit.core.early_stop import EarlyStop, Taken
from mi_audit.core.run import Run
from mi_audit.nn.mixed_precision import mixed_steps
from mi_audit.nn.optimisers import Optimiser

SCHEDULED = "its step size follows a schedule over all steps"


def rule_of(run: Run, optimiser: Optimiser) -> EarlyStop | None:
    """The rule of `run`, or None when all steps are to be taken.

    They are when step sizes are planned to shrink: the loss stands still before they do and falls again afterwards.
    """
    return None if optimiser.scheduled else run.early_stop


def window_of(rule: EarlyStop, steps: int) -> int:
    """Steps between two looks in a search of `steps`."""
    return max(rule.least, math.ceil(rule.window * steps))


def leaving(losses: Float[Tensor, "steps rows"], step: int, rule: EarlyStop | None) -> Bool[Tensor, " rows"] | None:
    """Which rows leave after `step` steps, all of them at the last step; None when none does.

    Looks happen at multiples of the window only, and only they wait for the device.

    Args:
        losses: Identity loss of every row before every step; those from `step` on are not read.
        step: Steps taken.
        rule: None leaves when nothing but the end of the search ends it.
    """
    steps, rows = losses.shape
    if step == steps:
        return torch.ones(rows, dtype=torch.bool)
    if rule is None or step % window_of(rule, steps):
        return None
    stalled = converged(losses[:step].cpu(), window_of(rule, steps), rule)
    return stalled if stalled.any() else None


def polished(step: int, steps: int, run: Run) -> int:
    """The step after which rows that have converged after `step` of `steps` are over; `step` when they are already.

    Before they leave they take a tenth as many exact steps, so that they end as a whole search does. The exact ones
    among those that they took count.
    """
    if run.precision == "32":
        return step
    due, had = step - mixed_steps(step), max(0, step - mixed_steps(steps))
    return min(steps, step + max(0, due - had))


def polishing(run: Run) -> Run:
    """The run of rows that have converged: exact, and nothing but the last step ends it."""
    return replace(run, precision="32", early_stop=None)


def converged(losses: Float[Tensor, "taken rows"], window: int, rule: EarlyStop) -> Bool[Tensor, " rows"]:
    """Whether the last `rule.looks` windows brought each row less than `rule.tolerance` of all its progress.

    With the means m_1, ..., m_n of the windows, window i brought `min(m_1, ..., m_(i-1)) - m_i`, and all progress until
    then is `m_1 - min(m_1, ..., m_i)`. Means, because losses under random views waver. A row that never fell below its
    first window has not converged but not yet begun: it goes on.
    """
    means = losses.double().unflatten(0, (-1, window)).mean(dim=1)  # windows rows
    lowest = means.cummin(dim=0).values
    whole, brought = (means[0] - lowest)[1:], lowest[:-1] - means[1:]
    idle = (whole > 0) & (brought < rule.tolerance * whole)
    if len(idle) < rule.looks:
        return torch.zeros(losses.shape[1], dtype=torch.bool)
    return idle[-rule.looks :].all(dim=0)


def note_steps(run: Run, stage: str, asked: int, taken: Int64[Tensor, " rows"], optimiser: Optimiser) -> None:
    """Enter the steps of every row of a search into the ledger of a run that stops early."""
    if run.early_stop is None:
        return
    why = SCHEDULED if optimiser.scheduled else ""
    for steps, rows in zip(*(part.tolist() for part in taken.unique(return_counts=True)), strict=True):
        run.taken[Taken(stage, asked, steps, why)] += rows
