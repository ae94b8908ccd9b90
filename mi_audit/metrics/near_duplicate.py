"""Near-duplicates: reconstructions nearer to one training picture than pictures of one person are to each other."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import DataError
from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import Measurement
from mi_audit.core.types import Pixels

QUANTILE = 0.001
MOST = 500  # training images of one class that are compared with each other
LISTED = 5


class _Copies(NamedTuple):
    """Rows of the near-duplicates, nearest first; the threshold, the pairs it rests on, and what chance achieves."""

    rows: Int[Tensor, " m"]
    threshold: float
    pairs: int
    by_chance: str


@dataclass(frozen=True, kw_only=True)
class NearDuplicates(Metric):
    """The number of reconstructions that may be copies: each should be looked at beside the training picture.

    A reconstruction counts when its distance to some private training image of its class is below the 0.1 % quantile of
    the distances between two different training images of one class, pooled over the attacked classes. Distances are
    root mean squared differences of pixels in [0, 1]; identical training images are left out of the quantile.

    Some honest pictures come as near by chance, the more the larger the class, so the reason also says how many of the
    held-out images do, which nobody copied. A shifted copy is missed. Neither a hit nor zero is a proof.

    Raises:
        DataError: An attacked class has no private image.
    """

    names: ClassVar = ("near_duplicates",)
    unit: ClassVar = "images"
    summary: ClassVar = "number of reconstructions that are almost a private training image, in pixels"

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        found = _copies(evidence)
        return (
            Measurement(
                name=self.names[0],
                protocol=f"{self.names[0]}/image/all/none@pixels#rmse-train-q{QUANTILE}",
                value=None if isinstance(found, str) else float(len(found.rows)),
                unit=self.unit,
                count=len(evidence.labels),
                counted="images",
                reason=found if isinstance(found, str) else _told(found, evidence),
                leak_grows=True,
            ),
        )


def pair_distances(private: Dataset) -> Float[Tensor, " p"]:
    """Distances of the pairs of different images of one class; of classes larger than 500, of every so many."""
    found = [torch.zeros(0)]
    for label in private.labels.unique():
        members = (private.labels == label).nonzero().squeeze(1)
        chosen = members[torch.linspace(0, len(members) - 1, min(len(members), MOST)).long()]
        apart = torch.pdist(_rows(private.pixels[chosen])) / private.pixels[0].numel() ** 0.5
        found.append(apart[apart > 0])
    return torch.cat(found)


def nearest_training(pixels: Pixels, labels: Int[Tensor, " b"], private: Dataset) -> Float[Tensor, " b"]:
    """Distance of every picture to the nearest private image of its class; class by class, to save memory."""
    nearest = torch.zeros(len(pixels))
    for label in labels.unique():
        mine, pool = labels == label, private.pixels[private.labels == label]
        if not len(pool):
            raise DataError(f"expected private images of class {int(label)}, got none; attack classes that have some")
        apart = torch.cdist(_rows(pixels[mine]), _rows(pool), compute_mode="donot_use_mm_for_euclid_dist")
        nearest[mine] = apart.amin(dim=1) / pixels[0].numel() ** 0.5
    return nearest


def _rows(pixels: Pixels) -> Float[Tensor, "b d"]:
    return pixels.flatten(1).float() / 255


def _copies(evidence: Evidence) -> _Copies | str:
    """The near-duplicates, or why there can be none."""
    if not len(evidence.labels):
        return "no reconstruction"
    if evidence.pixels.shape[1:] != evidence.private.pixels.shape[1:]:
        return "reconstructions and private images differ in shape"
    pairs = pair_distances(evidence.private)
    if not len(pairs):
        return "no class has two different private training images to compare"
    threshold = float(np.quantile(pairs.numpy(), QUANTILE))
    near = nearest_training(evidence.pixels, evidence.labels, evidence.private)
    order = near.argsort(stable=True)
    return _Copies(order[near[order] < threshold], threshold, len(pairs), _by_chance(evidence, threshold))


def _by_chance(evidence: Evidence, threshold: float) -> str:
    """How many held-out images of the classes that were attacked are as near to a training image."""
    held_out = evidence.held_out
    if held_out is None or held_out.pixels.shape[1:] != evidence.private.pixels.shape[1:]:
        return "no held-out image to compare with"
    claimed = torch.isin(held_out.labels, evidence.labels) & torch.isin(held_out.labels, evidence.private.labels)
    near = nearest_training(held_out.pixels[claimed], held_out.labels[claimed], evidence.private)
    return f"as near are {int((near < threshold).sum())} of {len(near)} held-out images"


def _told(found: _Copies, evidence: Evidence) -> str:
    """The count in words, the limit, and the first few by class and seed."""
    limit = f"limit {found.threshold:.3g} from {found.pairs:,} pairs of training images"
    text = f"exact count among {len(evidence.labels)} reconstructions, {limit}; {found.by_chance}"
    if not len(found.rows):
        return text
    shown = found.rows[:LISTED].tolist()
    named = ", ".join(f"class {int(evidence.labels[row])} (seed {int(evidence.seeds[row])})" for row in shown)
    more = f" and {len(found.rows) - len(shown)} more" if len(found.rows) > len(shown) else ""
    return f"{text}; look at {named}{more}"
