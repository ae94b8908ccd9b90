"""Public images that a classifier takes for its own classes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_audit.core.types import Scores


def top_n(scores: Scores, count: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """The `count` images that are surest of every class (PLG-MI, Sec. 3.2), surest first: their rows and labels.

    There are `count` rows per class, ordered by class; an image may serve several classes.
    """
    rows = scores.sort(dim=0, descending=True, stable=True).indices[:count].T  # k count
    labels = torch.arange(scores.shape[1], device=scores.device).repeat_interleave(rows.shape[1])
    return rows.flatten(), labels


def reuse(rows: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Share of the rows that name an image which an earlier row has named already."""
    return 1 - torch.tensor(len(rows.unique()) / len(rows))
