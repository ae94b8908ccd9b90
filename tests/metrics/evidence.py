"""A handful of toy reconstructions and the evaluator's view of them."""

from typing import Any

import torch
from torch import Tensor

from mi_audit.core.dataset import Dataset
from mi_audit.core.metric import Evidence, Judge
from tests.toy import target

CLASSES = ("a", "b", "c", "d", "e", "f", "g", "h")


def judge() -> Judge:
    network = target()
    return Judge("toy-00000000", logits=network.logits, features=network.features)


def evidence(labels: list[int], **changes: Any) -> Evidence:
    """Perfect reconstructions of `labels` under seed 0; private images of all eight classes at distance 0."""
    one_hot = torch.eye(8)
    private = Dataset("private", torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.arange(8), CLASSES, "private")
    facts: dict[str, Any] = {
        "pixels": torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8),
        "labels": torch.tensor(labels),
        "seeds": torch.zeros(len(labels), dtype=torch.int64),
        "logits": one_hot[labels],
        "features": one_hot[labels],
        "private": private,
        "private_features": one_hot,
        "judge": judge(),
    }
    return Evidence(**{**facts, **changes})


def ranked(label: int, rank: int) -> Tensor:
    """Logits of eight classes with `label` at `rank`, 0 being the best."""
    logits = torch.arange(8, 0, -1).float()
    logits[label], logits[rank] = logits[rank].clone(), logits[label].clone()
    return logits


def grey(*levels: int) -> Tensor:
    """One image of every level of grey."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).clone()


def pictures(levels: list[int], labels: list[int]) -> Dataset:
    """Private images of one level of grey each."""
    return Dataset("private", grey(*levels), torch.tensor(labels), CLASSES, "private")
