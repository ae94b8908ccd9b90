"""Batches of a data set, in an order and with an augmentation that depend on the seed and the epoch only."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.core.types import Images, Labels
from mi_audit.nn.modes import evaluating
from mi_audit.train.augment import DRAWS, Augmentation, augment
from mi_audit.train.seeding import stream


class Batch(NamedTuple):
    """Images in [0, 1] with their labels.

    Attributes:
        done: Images of the epoch so far.
        rows: Their positions in the data set; None when a stepper drew them.
    """

    images: Images
    labels: Labels
    done: int
    rows: Labels | None = None


class Feed:
    """Shuffles and augments `data` on the device; the length is the number of batches per epoch.

    A last batch of a single image is left out, for batch norms, unless it is the only one. Balanced by class or not, an
    epoch has the same batches, each of the same size, and serves every image once.

    Args:
        data: What to serve; it moves to the device when it takes less than a quarter of the free memory there.
        batch_size: Images per batch.
        augmentation: Name of the augmentation.
        layout: Memory layout of the images.
        seed: Of order and augmentation.
        device: Where the batches are wanted.
        images_per_class: K for batches of `batch_size / K` classes with K images each; None shuffles all images. A
            class whose size is no multiple of K comes in near-equal groups of about K, none of its images twice or
            left out; a batch border may then cut a group. Where classes are too few, a batch holds several groups of
            one class.

    Raises:
        ConfigError: Two groups of `images_per_class` do not fit into a batch.
    """

    def __init__(
        self,
        data: Dataset,
        batch_size: int,
        augmentation: Augmentation,
        layout: torch.memory_format,
        seed: int,
        device: str,
        images_per_class: int | None = None,
    ) -> None:
        if images_per_class is not None and not 1 <= images_per_class <= batch_size // 2:
            raise ConfigError(
                f"expected from 1 to {batch_size // 2} images per class in a batch of {batch_size}, "
                f"got {images_per_class}; lower it or raise the batch size"
            )
        self.images_per_class, self.classes = images_per_class, data.labels
        self.count, self.seed, self.device = len(data), seed, device
        self.augmentation: Augmentation = augmentation
        self.layout = layout
        self.pixels, self.labels = resident(data, device)
        starts = [start for start in range(0, self.count, batch_size) if start == 0 or self.count - start > 1]
        self.slices = [slice(start, min(start + batch_size, self.count)) for start in starts]

    def __len__(self) -> int:
        return len(self.slices)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch, counted from 0."""
        rng = stream(self.seed, "epoch", number)
        order = torch.randperm(self.count, generator=rng)
        if self.images_per_class is not None:
            order = balanced(order, self.classes, self.images_per_class, rng)
        order = order.to(self.pixels.device)
        uniform = torch.rand(self.count, DRAWS, generator=rng).to(self.device)
        for rows in self.slices:
            yield Batch(*self._serve(order[rows], uniform[rows]), rows.stop, order[rows])

    def take(self, rows: Labels, rng: torch.Generator) -> tuple[Images, Labels]:
        """The images with these numbers, augmented by `rng`, for whoever draws the batches in our place."""
        return self._serve(rows.to(self.pixels.device), torch.rand(len(rows), DRAWS, generator=rng).to(self.device))

    def _serve(self, rows: Labels, uniform: Float[Tensor, "b 6"]) -> tuple[Images, Labels]:
        pixels = sent(self.pixels[rows], self.device)
        images = augment(pixels.float() / 255, uniform, self.augmentation)
        labels = sent(self.labels[rows], self.device)
        return images.contiguous(memory_format=self.layout), labels


def balanced(order: Labels, classes: Labels, size: int, rng: torch.Generator) -> Labels:
    """`order` rearranged so that images of one class stand together in groups of about `size`.

    The groups of a class lie at equal distances over the whole order, so that neighbours are of different classes and
    large classes are not left over for the end.

    Args:
        order: Rows in random order; it decides which images of a class share a group.
        classes: Class of every row.
        size: Images per group.
        rng: Of the place of each class; on the CPU, as all tensors are.
    """
    order = order[classes[order].argsort(stable=True)]
    label, counts = classes[order], classes.bincount()
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[label]  # within the class
    groups = ((2 * counts + size) // (2 * size)).clamp_min(1)[label]  # counts / size, rounded
    group = place * groups // counts[label]
    phase = torch.rand(len(counts), generator=rng, dtype=torch.float64)
    return order[((group + phase[label]) / groups).argsort(stable=True)]


def resident(data: Dataset, device: str) -> tuple[Tensor, Tensor]:
    """Pixels and labels on `device`, unless they would take more than a quarter of its free memory: then on the CPU."""
    if torch.device(device).type == "cuda" and data.pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
        return data.pixels, data.labels
    return data.pixels.to(device), data.labels.to(device)


def sent(batch: Tensor, device: str) -> Tensor:
    """`batch` on `device`; an accelerator fetches it while it still computes, from memory that cannot be swapped."""
    if batch.device.type == "cpu" and torch.device(device).type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


@torch.no_grad()
def fastest_layout(model: nn.Module, images: Images) -> torch.memory_format:
    """Put `model` into channels-last where it accepts that; networks that flatten with `.view` do not."""
    layout = torch.channels_last
    model.to(memory_format=layout)
    try:
        with evaluating(model):
            model(images.contiguous(memory_format=layout))
    except RuntimeError:
        layout = torch.contiguous_format
        model.to(memory_format=layout)
    return layout
