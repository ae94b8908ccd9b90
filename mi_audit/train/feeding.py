"""Batches of a data set, in an order and with an augmentation that depend on the seed and the epoch only."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mi_audit.core.dataset import Dataset
from mi_audit.core.types import Images, Labels
from mi_audit.train.augment import DRAWS, Augmentation, augment
from mi_audit.train.seeding import stream


class Batch(NamedTuple):
    """Images in [0, 1] with their labels; `done` counts the images of the epoch so far."""

    images: Images
    labels: Labels
    done: int


class Feed:
    """Shuffles and augments `data` on the device; the length is the number of batches per epoch.

    A last batch of a single image is left out, for batch norms, unless it is the only one.

    Args:
        data: What to serve; it moves to the device when it takes less than a quarter of the free memory there.
        batch_size: Images per batch.
        augmentation: Name of the augmentation.
        layout: Memory layout of the images.
        seed: Of order and augmentation.
        device: Where the batches are wanted.
    """

    def __init__(
        self,
        data: Dataset,
        batch_size: int,
        augmentation: Augmentation,
        layout: torch.memory_format,
        seed: int,
        device: str,
    ) -> None:
        self.count, self.seed, self.device = len(data), seed, device
        self.augmentation: Augmentation = augmentation
        self.layout = layout
        self.pixels, self.labels = _resident(data, device)
        starts = [start for start in range(0, self.count, batch_size) if start == 0 or self.count - start > 1]
        self.slices = [slice(start, min(start + batch_size, self.count)) for start in starts]

    def __len__(self) -> int:
        return len(self.slices)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch, counted from 0."""
        rng = stream(self.seed, "epoch", number)
        order = torch.randperm(self.count, generator=rng).to(self.pixels.device)
        uniform = torch.rand(self.count, DRAWS, generator=rng).to(self.device)
        for rows in self.slices:
            pixels = self.pixels[order[rows]].to(self.device, non_blocking=True)
            images = augment(pixels.float() / 255, uniform[rows], self.augmentation)
            labels = self.labels[order[rows]].to(self.device, non_blocking=True)
            yield Batch(images.contiguous(memory_format=self.layout), labels, rows.stop)


def _resident(data: Dataset, device: str) -> tuple[Tensor, Tensor]:
    if torch.device(device).type == "cuda" and data.pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
        return data.pixels, data.labels
    return data.pixels.to(device), data.labels.to(device)


@torch.no_grad()
def fastest_layout(model: nn.Module, images: Images) -> torch.memory_format:
    """Put `model` into channels-last where it accepts that; networks that flatten with `.view` do not."""
    modes = [(module, module.training) for module in model.modules()]
    layout = torch.channels_last
    model.eval().to(memory_format=layout)
    try:
        model(images.contiguous(memory_format=layout))
    except RuntimeError:
        layout = torch.contiguous_format
        model.to(memory_format=layout)
    for module, training in modes:
        module.training = training
    return layout
