"""The nearest point of a ball."""

import torch
from jaxtyping import Float
from torch import Tensor


def onto_l1_ball(rows: Float[Tensor, "b d"], radius: float) -> Float[Tensor, "b d"]:
    """Each row, or the nearest one whose absolute values sum to `radius` when they sum to more.

    Duchi et al., "Efficient projections onto the l1-ball", ICML 2008: every absolute value shrinks by one threshold,
    which sorting finds.
    """
    size = rows.abs()
    falling = size.sort(dim=1, descending=True).values
    excess = falling.cumsum(dim=1) - radius
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    last = (falling * count > excess).sum(dim=1, keepdim=True).clamp_min(1)  # entries that stay above zero
    threshold = excess.gather(1, last - 1) / last
    return rows.sign() * (size - threshold.clamp_min(0)).clamp_min(0)
