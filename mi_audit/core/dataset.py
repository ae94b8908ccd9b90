"""Images with labels, as the rest of the program sees them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mi_audit.core.types import Images, Labels, Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Square images of one size with their classes; large sets are memory-mapped, so the type is always a tensor.

    Attributes:
        name: Where it came from, as the user wrote it.
        pixels: 8-bit images on the CPU; one or three channels.
        labels: Class of each image, an index into `classes`.
        classes: Class names in label order.
        fingerprint: Hash of the file names, the file contents and the reading options.
        files: Source of each image, for messages; empty when the source is an array.
    """

    name: str
    pixels: Pixels
    labels: Labels
    classes: tuple[str, ...]
    fingerprint: str
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.pixels.shape[-1]

    def select(self, rows: Tensor) -> "Dataset":
        """The given rows, under the same class list."""
        files = tuple(self.files[row] for row in rows.tolist()) if self.files else ()
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows], files=files)

    def images(self, rows: Tensor | slice = slice(None), device: torch.device | str = "cpu") -> Images:
        """Rows as floating point in [0, 1] on `device`."""
        return self.pixels[rows].to(device).float() / 255


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Disjoint stratified parts of one data set. Models are fitted on `train`, chosen on `val`, reported on `test`."""

    train: Dataset
    val: Dataset
    test: Dataset
