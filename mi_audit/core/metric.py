"""The contract of a metric."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from mi_audit.core.dataset import Dataset
from mi_audit.core.report import Measurement
from mi_audit.core.types import Features, Images, Logits


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """The evaluator, reduced to what metrics ask: another network than the target, trained on the private classes.

    Attributes:
        name: Architecture and first figures of the weights' hash; part of every protocol name.
        logits, features: Of images in [0, 1], in batches, without gradients.
    """

    name: str
    logits: Callable[[Images], Logits]
    features: Callable[[Images], Features]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is measured: the pictures as they were written, not as the attack held them.

    Attributes:
        pixels: 8-bit reconstructions, from all seeds.
        labels: Class each one claims to show.
        seeds: Seed that produced it.
        logits, features: Of the evaluator on `pixels`; computed once for all metrics.
        private: Training images of the attacked classes, with their evaluator features.
        judge: The evaluator.
    """

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    seeds: Int[Tensor, " n"]
    logits: torch.Tensor
    features: torch.Tensor
    private: Dataset
    private_features: torch.Tensor
    judge: Judge
    device: str = "cpu"


class Metric(ABC):
    """A frozen dataclass of settings; one metric file may return several measurements that share their work.

    Attributes:
        names: Names of the measurements, in order.
        leak_grows: For each of them, whether larger means more leakage.
    """

    names: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]: ...
