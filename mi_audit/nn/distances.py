"""Distances in feature space."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_audit.core.errors import DataError
from mi_audit.core.types import Features, Labels, PerSample


def nearest_of_class(
    features: Features, labels: Labels, references: Float[Tensor, "r d"], reference_labels: Int[Tensor, " r"]
) -> PerSample:
    """Squared Euclidean distance from each row to the nearest reference of its own class.

    Distances are taken coordinate by coordinate: the faster `|a|^2 + |b|^2 - 2ab` loses the small ones to rounding.

    Raises:
        DataError: A class has no reference.
    """
    nearest = features.new_empty(len(features))
    for label in labels.unique():
        rows, pool = labels == label, references[reference_labels == label]
        if not len(pool):
            raise DataError(f"expected private images of class {int(label)}, got none; attack classes that have some")
        apart = torch.cdist(features[rows], pool, compute_mode="donot_use_mm_for_euclid_dist")
        nearest[rows] = apart.amin(dim=1).square()
    return nearest
