"""How much two views of one batch depend on each other: kernel matrices, normalised HSIC and COCO, differentiable."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mi_audit.core.types import Features, Labels

Gram = Float64[Tensor, "*j m m"]
Grams = Float64[Tensor, "*#j m m"]  # one side may hold a single view for all of the other
ESCALATION = (1.0, 10.0, 100.0, 1000.0)  # how often the ridge, until the system can be solved
LEAST_WIDTH = 0.01  # of a kernel whose width is the median distance
LEAST_NORM = 1e-12  # below it the root of a norm has no usable gradient


class Factors(NamedTuple):
    """What a measure compares: one matrix per view, zero and without gradient where `usable` is false."""

    matrices: Gram
    usable: Bool[Tensor, "*j"]


def gaussian(rows: Features, sigma: float) -> Float64[Tensor, "m m"]:
    """`exp(-D^2 / (2 sigma^2 d))` of the Euclidean distances D between rows of d numbers, in double precision.

    Args:
        rows: One row per image.
        sigma: Width, in units of the root of d; 0 takes the median distance, at least 0.01, in the place of
            `sigma sqrt(d)`.

    Returns:
        NaN everywhere, without a gradient, when a number of `rows` is not finite.
    """
    finite = rows.isfinite().all()
    # The mean changes no distance, and without it the difference below cancels less.
    exact = torch.where(finite, rows, 0).double()
    exact = exact - exact.mean(dim=0)
    squares = exact.square().sum(dim=1)
    distances = (squares[:, None] + squares[None, :] - 2 * exact @ exact.mT).clamp_min(0)
    distances = distances * (1 - torch.eye(len(rows), dtype=distances.dtype, device=distances.device))
    width = 2 * sigma**2 * rows.shape[1] if sigma else 2 * _median(distances).clamp_min(LEAST_WIDTH).square()
    return torch.where(finite, (-distances / width).exp(), torch.nan)


def same_class(labels: Labels) -> Float64[Tensor, "m m"]:
    """The linear kernel of one-hot labels: 1 for two images of a class, else 0."""
    return (labels[:, None] == labels[None, :]).double()


def ridge_smoothers(grams: Gram, eps: float) -> Factors:
    """`R = K H (K H + eps m I)^-1` of each kernel matrix K of m images, with the centring `H = I - 1 1^T / m`.

    Solved, not inverted. Where the system is singular, the ridge eps becomes 10, 100 and 1000 times as large; where
    that does not help either, the matrix is zero and not usable. Nothing waits for the device.
    """
    m = grams.shape[-1]
    centred, identity = grams - grams.mean(dim=-1, keepdim=True), torch.eye(m, dtype=grams.dtype, device=grams.device)
    ridges = eps * m * torch.tensor(ESCALATION, dtype=grams.dtype).to(grams.device, non_blocking=True)
    with torch.no_grad():
        systems = torch.stack([centred + ridge * identity for ridge in ridges.unbind()])
        found, failed = torch.linalg.solve_ex(systems, centred.expand_as(systems))
        solved = (failed == 0) & found.isfinite().all(dim=-1).all(dim=-1)
        first, usable = solved.int().argmax(dim=0), solved.any(dim=0)
    centred = torch.where(usable[..., None, None], centred, 0)
    # K H commutes with the ridge, so that the inverse may stand on the left.
    system = centred + ridges.take(first)[..., None, None] * identity
    matrices: Tensor = torch.linalg.solve_ex(system, centred).result
    return Factors(matrices, usable)


def centred(grams: Gram) -> Factors:
    """`H K H` of each kernel matrix K; zero and not usable where K is not finite."""
    usable = grams.isfinite().all(dim=-1).all(dim=-1)
    known = torch.where(usable[..., None, None], grams, 0)
    known = known - known.mean(dim=-1, keepdim=True)
    return Factors(known - known.mean(dim=-2, keepdim=True), usable)


def hsic(one: Grams, other: Grams) -> Float64[Tensor, "..."]:
    """`tr(R S)` of two ridge smoothers: the normalised Hilbert-Schmidt independence criterion, at most m - 1.

    It grows with the ranks of the kernel matrices even where the views are independent: read it against the value after
    a permutation of one view.
    """
    return (one * other.mT).sum(dim=(-2, -1))


def coco_fro(one: Grams, other: Grams) -> Float64[Tensor, "..."]:
    """`sqrt(|K L|_F) / m` of two centred kernel matrices: the form that the code of BiDO calls COCO."""
    return _root(torch.linalg.matrix_norm(one @ other)) / one.shape[-1]


def coco_spec(one: Grams, other: Grams) -> Float64[Tensor, "..."]:
    """`sqrt(|K L|_2) / m` of two centred kernel matrices, with the largest singular value: COCO as it is defined.

    Gretton et al., "Kernel methods for measuring independence", JMLR 2005.
    """
    return _root(torch.linalg.matrix_norm(one @ other, ord=2)) / one.shape[-1]


def permuted(factors: Gram, order: Labels) -> Gram:
    """The matrices that the views would have with their images in another order."""
    return factors.index_select(-2, order).index_select(-1, order)


def _root(norm: Tensor) -> Tensor:
    return torch.where(norm > LEAST_NORM, norm.clamp_min(LEAST_NORM).sqrt(), 0)


def _median(distances: Float64[Tensor, "m m"]) -> Float64[Tensor, ""]:
    """The median distance of two different rows (the lower of two middle ones), a constant for the gradient."""
    count = len(distances)
    rows, columns = torch.tril_indices(count, count, offset=-1, device=distances.device)
    return distances.detach()[rows, columns].median().sqrt()
