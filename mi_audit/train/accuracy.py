"""How often a classifier is right."""

import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.core.dataset import Dataset
from mi_audit.core.report import Interval, Quantity
from mi_audit.nn.intervals import clopper_pearson
from mi_audit.nn.modes import evaluating


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset, device: str, batch_size: int = 256) -> Quantity:
    """The share of `data` that `model` puts into the right class, with its exact 95 % interval."""
    if not len(data):
        return Quantity(
            value=None, unit="share", count=0, counted="images", reason=f"{data.name} has no images in this split"
        )
    hits, _ = hits_and_loss(model, data, device, batch_size)
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
