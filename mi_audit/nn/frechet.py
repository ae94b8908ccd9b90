"""The Frechet distance between two sets of features."""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> float:
    """`|m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))` of the fitted Gaussians (Dowson & Landau 1982).

    With centred rows A and B scaled so that S1 = A'A and S2 = B'B, the last trace is the sum of the singular values of
    A B', whose squares are the eigenvalues of S1 S2. That needs no matrix square root and holds for singular
    covariances, that is with fewer images than features. In double precision; NaN when an entry is not finite or a set
    has fewer than two rows.
    """
    if min(len(first), len(second)) < 2 or not (first.isfinite().all() and second.isfinite().all()):
        return float("nan")
    (mean_a, root_a), (mean_b, root_b) = _moments(first), _moments(second)
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return float(distance.clamp(min=0))  # rounding alone can make it negative


def _moments(features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "r d"]]:
    """The mean and a matrix R with R'R = the covariance and at most as many rows as columns."""
    rows = features.detach().cpu().double()
    mean = rows.mean(dim=0)
    centred = (rows - mean) / (len(rows) - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R if len(rows) > rows.shape[1] else centred
