"""KID: how much the set of reconstructions looks like the set of private images, without the bias of FID."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from scipy import stats
from torch import Tensor

from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import Interval, Measurement
from mi_audit.core.types import Features, Labels
from mi_audit.store.inception import inception_features

CHUNK = 1024  # rows of the kernel matrix held in memory at once
LEVEL = 0.95
TOO_FEW = "too few identities or images to leave one identity out: no interval"


class _Sets(NamedTuple):
    """Features of both sets, and what to call a distance between them."""

    name: str
    extractor: str
    found: Features
    private: Features


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Sums of a kernel over pairs of images, identity by identity; all a mean discrepancy needs.

    Attributes:
        found, private: Sums over pairs of different images within a set, identities x identities.
        cross: Sums over pairs of one reconstruction and one private image.
        found_count, private_count: Images of each identity.
    """

    found: Float64[Tensor, "g g"]
    private: Float64[Tensor, "g g"]
    cross: Float64[Tensor, "g g"]
    found_count: Float64[Tensor, " g"]
    private_count: Float64[Tensor, " g"]

    def discrepancy(self) -> float:
        """The unbiased estimate of MMD^2; NaN with fewer than two images in a set."""
        counts = self.found_count.sum(), self.private_count.sum()
        return float(_unbiased(self.found.sum(), self.private.sum(), self.cross.sum(), *counts))

    def without_each(self) -> Float64[Tensor, " g"]:
        """The same estimate with one identity left out of both sets, for each identity."""
        return _unbiased(
            *(_left_out(block) for block in (self.found, self.private, self.cross)),
            *(count.sum() - count for count in (self.found_count, self.private_count)),
        )


@dataclass(frozen=True, kw_only=True)
class KID(Metric):
    """The kernel distance of Binkowski et al. (ICLR 2018) between reconstructions and private training images.

    It is the unbiased estimate of MMD^2 with the kernel `(x . y / d + 1)^3` over all images of the attacked classes,
    and may be negative. As with FID, features are those of pytorch-fid's Inception when it is at hand (`kid`), else the
    evaluator's (`kid_evaluator`): the two must not be compared. The interval is a jackknife that leaves out one
    identity at a time; a bootstrap would pair an identity with its own copy. It measures how real the pictures look as
    a set, not whether a person can be recognised, so it speaks neither for nor against leakage.
    """

    names: ClassVar = ("kid_evaluator",)
    unit: ClassVar = "squared kernel distance"
    summary: ClassVar = "unbiased kernel distance (cubic MMD^2) of reconstructions to the private images"

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        sets = _features(evidence)
        (count, width), private = sets.found.shape, len(sets.private)
        value, interval = None, None
        reason: str | None
        if min(count, private) < 2:
            reason = f"two images are needed on each side, got {count} reconstructions and {private} private images"
        elif not (sets.found.isfinite().all() and sets.private.isfinite().all()):
            reason = "a feature is not finite"
        else:
            blocks = kernel_blocks(sets.found, evidence.labels, sets.private, evidence.private.labels)
            value, interval = blocks.discrepancy(), jackknife(blocks)
            reason = None if interval else TOO_FEW
        return (
            Measurement(
                name=sets.name,
                protocol=f"{sets.name}/set/all/none@{sets.extractor}#cubic-train-d{width}-raw",
                value=value,
                unit=self.unit,
                count=count,
                counted="images",
                interval=interval,
                reason=reason,
                leak_grows=None,
            ),
        )


def kernel_blocks(
    found: Features, labels: Labels, private: Float[Tensor, "m d"], private_labels: Int[Tensor, " m"]
) -> Blocks:
    """The sums of the cubic kernel, in double precision."""
    rows, references = found.detach().cpu().double(), private.detach().cpu().double()
    groups, place = torch.cat([labels.cpu(), private_labels.cpu()]).unique(return_inverse=True)
    mine, theirs = place[: len(rows)], place[len(rows) :]
    own, other = (sums - _diagonal(x, at, len(groups)) for x, at, sums in (
        (rows, mine, _sums(rows, mine, rows, mine, len(groups))),
        (references, theirs, _sums(references, theirs, references, theirs, len(groups))),
    ))  # fmt: skip
    counts = (torch.bincount(at, minlength=len(groups)).double() for at in (mine, theirs))
    return Blocks(own, other, _sums(rows, mine, references, theirs, len(groups)), *counts)


def jackknife(blocks: Blocks) -> Interval | None:
    """Student's interval from leaving out one identity at a time; None when some identity cannot be left out.

    The variance is `(g - 1) / g` times the squared deviations of the g estimates from their mean (Efron & Stein 1981).
    """
    left, value = blocks.without_each(), blocks.discrepancy()
    identities = len(left)
    if identities < 2 or not left.isfinite().all():
        return None
    error = float(((identities - 1) / identities * (left - left.mean()).square().sum()).sqrt())
    reach = float(stats.t.ppf((1 + LEVEL) / 2, identities - 1)) * error
    return Interval(
        low=value - reach, high=value + reach, level=LEVEL, method=f"jackknife over {identities} identities"
    )


def _features(evidence: Evidence) -> _Sets:
    inception = inception_features(evidence.device)
    if inception is None:
        return _Sets("kid_evaluator", evidence.judge.name, evidence.features, evidence.private_features)
    found, private = (inception(pixels.float() / 255) for pixels in (evidence.pixels, evidence.private.pixels))
    return _Sets("kid", "inception-2015-12-05", found, private)


def _kernel(inner: Tensor, width: int) -> Tensor:
    return (inner / width + 1).pow(3)


def _sums(
    first: Float64[Tensor, "n d"],
    first_group: Int[Tensor, " n"],
    second: Float64[Tensor, "m d"],
    second_group: Int[Tensor, " m"],
    groups: int,
) -> Float64[Tensor, "g g"]:
    """The kernel summed over all pairs of each two groups."""
    total = first.new_zeros(groups, groups)
    for rows, places in zip(first.split(CHUNK), first_group.split(CHUNK), strict=True):
        kernel = _kernel(rows @ second.T, first.shape[1])
        total.index_add_(0, places, first.new_zeros(len(rows), groups).index_add_(1, second_group, kernel))
    return total


def _diagonal(rows: Float64[Tensor, "n d"], group: Int[Tensor, " n"], groups: int) -> Float64[Tensor, "g g"]:
    """What pairs of an image with itself contribute."""
    alone = _kernel(rows.square().sum(dim=1), rows.shape[1])
    return torch.diag(rows.new_zeros(groups).index_add_(0, group, alone))


def _left_out(block: Float64[Tensor, "g g"]) -> Float64[Tensor, " g"]:
    return block.sum() - block.sum(dim=0) - block.sum(dim=1) + block.diagonal()


def _unbiased(found: Tensor, private: Tensor, cross: Tensor, n: Tensor, m: Tensor) -> Tensor:
    estimate = found / (n * (n - 1)) + private / (m * (m - 1)) - 2 * cross / (n * m)
    return torch.where(torch.minimum(n, m) < 2, torch.nan, estimate)
