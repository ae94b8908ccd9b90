"""How often a classifier is right."""

import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.core.dataset import Dataset
from mi_audit.core.report import Interval, Quantity
from mi_audit.core.types import Labels
from mi_audit.nn.intervals import clopper_pearson
from mi_audit.nn.modes import evaluating, keeping_modes
from mi_audit.store.targets import LoadedModel


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset, device: str, batch_size: int = 256) -> Quantity:
    """The share of `data` that `model` puts into the right class, with its exact 95 % interval."""
    return _share(hits_and_loss(model, data, device, batch_size)[0] if len(data) else 0, data)


def measured_accuracy(model: LoadedModel, data: Dataset, device: str, batch_size: int = 256) -> Quantity:
    """As `accuracy`, of what `model` releases, which is on `device` and left as it was."""
    return share_right(released_labels(model, data, device, batch_size), data)


@torch.no_grad()
def released_labels(model: LoadedModel, data: Dataset, device: str, batch_size: int = 256) -> Labels:
    """The class that `model`, which is on `device`, answers for every image: behind its output rule, if it has one.

    Whatever happens, its modules keep their modes and its weights go on to learn if they did.
    """
    learning = {parameter: parameter.requires_grad for parameter in model.classifier.parameters()}
    with keeping_modes(model.classifier):
        try:
            target = model.target()
            rows = (slice(start, start + batch_size) for start in range(0, len(data), batch_size))
            return torch.cat([data.labels[:0], *(target.labels(data.images(part, device)).cpu() for part in rows)])
        finally:
            for parameter, learns in learning.items():
                parameter.requires_grad_(learns)


def share_right(labels: Labels, data: Dataset) -> Quantity:
    """The share of `data` whose class is the one in `labels`, with its exact 95 % interval."""
    return _share(int((labels == data.labels).sum()), data)


def _share(hits: int, data: Dataset) -> Quantity:
    if not len(data):
        return Quantity(
            value=None, unit="share", count=0, counted="images", reason=f"{data.name} has no images in this split"
        )
    low, high = clopper_pearson(hits, len(data))
    interval = Interval(low=low, high=high, method="exact binomial (Clopper-Pearson) over images")
    return Quantity(value=hits / len(data), unit="share", count=len(data), counted="images", interval=interval)


@torch.no_grad()
def hits_and_loss(model: nn.Module, data: Dataset, device: str, batch_size: int = 256) -> tuple[int, float]:
    """Images classified rightly, and the summed cross-entropy; leaves the model in the mode it was in."""
    hits = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    with evaluating(model):
        for start in range(0, len(data), batch_size):
            rows = slice(start, start + batch_size)
            logits, labels = model(data.images(rows, device)).float(), data.labels[rows].to(device)
            hits += (logits.argmax(dim=1) == labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
    return int(hits), float(loss)
