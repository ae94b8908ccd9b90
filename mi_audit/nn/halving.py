"""Ranking candidates under many random views in rounds, of which each drops the worse half: successive halving.

Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016, Alg. 1,
with three rounds, and with views instead of training time. A view is the same whether the ones before it decided
anything or not, so that whoever survives gets the score of the whole ranking; only who is dropped may differ.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.types import Labels, PerSample

ROUNDS = ((10, 50), (30, 25))  # after so many percent of the views, go on with so many percent of the candidates


class Round(NamedTuple):
    """How many candidates of every class are judged, the best until then, and by which views."""

    candidates: int
    views: range


Judge = Callable[[Labels, range, int], Float[Tensor, "rows views"]]  # rows, views, scores that were given before


def rounds(candidates: int, keep: int, views: int, *, halving: bool) -> tuple[Round, ...]:
    """The rounds of a ranking; without `halving`, or when nobody could be dropped, it is one.

    Args:
        candidates: Of a class.
        keep: Candidates that the last round has at least, when there are so many.
        views: Views by which the last ones are judged in all.
        halving: Drop candidates on the way.
    """
    found: list[Round] = []
    seen, left = 0, candidates
    for share, part in ROUNDS if halving else ():
        until, fewer = math.ceil(share * views / 100), max(keep, math.ceil(part * candidates / 100))
        if seen < until < views and fewer < left:
            found.append(Round(left, range(seen, until)))
            seen, left = until, fewer
    return (*found, Round(left, range(seen, views)))


def ranking(judge: Judge, plan: tuple[Round, ...], classes: int, device: torch.device) -> tuple[Labels, PerSample]:
    """The rows of all candidates, ordered by class and within each best first, and the mean score of every row.

    Those that a later round dropped stand before those of an earlier one. Of equal candidates the first is better.

    Args:
        judge: Scores of some rows under some views.
        plan: The rounds.
        classes: Rows are grouped by class, as many for each.
        device: Of the scores.
    """
    order = torch.arange(classes * plan[0].candidates, device=device).view(classes, -1)
    scores = torch.zeros(order.numel(), plan[-1].views.stop, device=device)
    means = torch.zeros(order.numel(), device=device)
    done = 0
    for candidates, views in plan:
        left = order[:, :candidates].sort(dim=1).values
        rows = left.flatten()
        scores[rows, views.start : views.stop] = judge(rows, views, done)
        means[rows] = scores[rows, : views.stop].mean(dim=1)
        best = means[left].sort(dim=1, descending=True, stable=True).indices
        order[:, :candidates] = left.gather(1, best)
        done += len(rows) * len(views)
    return order.flatten(), means
