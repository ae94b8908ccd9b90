"""Whether two candidates that were timed side by side also found the same: gradients, a step, losses, attack rates."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.nn import optimisers
from mi_audit.nn.optimisers import Optimiser

COSINE, STEP = 0.999, 1e-3  # least median cosine of gradients; most relative difference between batch sizes
LOSS_SHARE, LOSS_LEAST = 0.02, 0.01  # most by which the final loss may be worse
ERRORS = 2  # standard errors by which the final loss or rate may be worse: with one, of six equal rows one would fail
SHARE = 0.9  # of the reference's final rate, the quality that time is taken to


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality line of a row.

    Attributes:
        cosine, cosine_least: Of the first gradient with that of the reference: median and least over latents.
        rebatched: Median difference of a first gradient, one image at a time against all at once, over its norm.
        moved: Median over latents of the largest difference that this makes to where the first step ends.
        same_work: Both sent the same number of images through each network, forward and backward.
        loss, loss_reference: Mean cross-entropy of the final images on the target in single precision.
        loss_slack: By how much the first may exceed the second.
        rate, rate_reference: Share of the final images that the evaluator takes for their class.
        rate_slack: By how much the first may fall short of the second.
        images: That losses and rates are means over.
        problems: What is not as it has to be, in words.
    """

    cosine: float
    cosine_least: float
    rebatched: float
    moved: float
    same_work: bool
    loss: float
    loss_reference: float
    loss_slack: float
    rate: float
    rate_reference: float
    rate_slack: float
    images: int
    problems: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_columns(self) -> dict[str, Any]:
        return {"quality_ok": self.ok, "quality": asdict(self)}


@contextmanager
def first_step() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect what the optimisers of the package are given and return in step 0: gradients, and moved latents."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def update(self: Optimiser, latents: Tensor, gradient: Tensor, state: Any, step: int) -> Any:
            moved, memory = original(self, latents, gradient, state, step)
            if step == 0:
                seen.append((gradient.detach().clone(), moved.detach().clone()))
            return moved, memory

        return update

    nesterov, adam = (watched(rule.update) for rule in (optimisers.Nesterov, optimisers.Adam))
    with mock.patch.object(optimisers.Nesterov, "update", nesterov), mock.patch.object(optimisers.Adam, "update", adam):
        yield seen


def cosines(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of every row with the row beside it."""
    return F.cosine_similarity(ours.flatten(1).double(), theirs.flatten(1).double(), dim=1)


def rebatched(together: Tensor, apart: Tensor) -> float:
    """Median difference of a row from the same row in another batch, over its norm.

    The largest says little: where rounding pushes one activation across zero, the gradient jumps.
    """
    norms = together.flatten(1).norm(dim=1).clamp_min(1e-30)
    return float(((together - apart).flatten(1).norm(dim=1) / norms).median())


def moved_apart(together: Tensor, apart: Tensor) -> float:
    """Median over rows of the largest difference to the same row in another batch, in units of the latent."""
    return float((together - apart).flatten(1).abs().amax(dim=1).median())


@torch.no_grad()
def losses(target: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every image on the target, in single precision."""
    return torch.cat(
        [
            F.cross_entropy(target(part.float()).float(), own, reduction="none")
            for part, own in zip(images.split(64), labels.split(64), strict=True)
        ]
    )


@torch.no_grad()
def hits(evaluator: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """1 for every image that the evaluator takes for its class, else 0."""
    named = torch.cat([evaluator(part.float()).argmax(dim=1) for part in images.split(64)])
    return (named == labels).double()


def spread_of_mean(numbers: Tensor, groups: Tensor, draws: int = 1000) -> float:
    """Bootstrap standard error of the mean of `numbers`, when whole groups are drawn again."""
    kinds = groups.unique()
    means = torch.stack([numbers[groups == kind].double().mean() for kind in kinds])
    picks = torch.randint(len(kinds), (draws, len(kinds)), generator=torch.Generator().manual_seed(0))
    return float(means.cpu()[picks].mean(dim=1).std()) if len(kinds) > 1 else 0.0


def judge(
    *,
    gradients: tuple[Tensor, Tensor],
    rebatched: float,
    moved: float,
    work: tuple[Mapping[str, int], Mapping[str, int]],
    losses: tuple[Tensor, Tensor],
    hits: tuple[Tensor, Tensor],
    labels: Tensor,
    exact: bool,
) -> Quality:
    """Compare; the first of every pair is the engine, the second the reference.

    Args:
        gradients: Of the first step, row by row.
        rebatched, moved: As in `Quality`.
        work: Images passed through each network.
        losses, hits: Of the final images, row by row; several seeds may follow each other.
        labels: Of these rows: identities are drawn again as wholes.
        exact: In single precision gradients and steps have to agree; in bfloat16 only losses and rates have to.
    """
    angle = cosines(*gradients)
    (loss, loss_reference), (rate, rate_reference) = (
        [float(part.double().mean()) for part in pair] for pair in (losses, hits)
    )
    chance = [ERRORS * spread_of_mean(ours - theirs, labels) for ours, theirs in (losses, hits)]
    loss_slack = max(LOSS_SHARE * loss_reference, LOSS_LEAST, chance[0])
    rate_slack = max(1 / len(labels), chance[1])
    same_work = {k: v for k, v in work[0].items() if v} == {k: v for k, v in work[1].items() if v}
    median = float(angle.median())
    checks = {
        f"median cosine {median:.5f} below {COSINE}": exact and not median >= COSINE,
        f"a step depends on the batch by {rebatched:.1e}": exact and not rebatched <= STEP,
        f"work {dict(work[0])} is not {dict(work[1])}": not same_work,
        f"loss {loss:.4f} above {loss_reference:.4f}": not loss <= loss_reference + loss_slack + 1e-12,
        f"rate {rate:.3f} below {rate_reference:.3f}": not rate >= rate_reference - rate_slack - 1e-12,
    }
    return Quality(
        cosine=median,
        cosine_least=float(angle.min()),
        rebatched=rebatched,
        moved=moved,
        same_work=same_work,
        loss=loss,
        loss_reference=loss_reference,
        loss_slack=loss_slack,
        rate=rate,
        rate_reference=rate_reference,
        rate_slack=rate_slack,
        images=len(labels),
        problems=tuple(problem for problem, is_so in checks.items() if is_so),
    )


def time_to_quality(points: Sequence[tuple[float, float]], wanted: float) -> float | None:
    """The fewest seconds of the (seconds, rate) pairs whose rate reaches `wanted`; None when none does."""
    reached = [seconds for seconds, rate in points if rate >= wanted - 1e-12]
    return min(reached) if reached else None
