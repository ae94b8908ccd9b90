"""The contract of a metric."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mi_audit.core.dataset import Dataset
from mi_audit.core.report import Measurement
from mi_audit.core.types import Features, Images, Labels, Logits, Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """The evaluator, reduced to what metrics ask: another network than the target, trained on the private classes.

    Attributes:
        name: Architecture and first figures of the weights' hash; part of every protocol name.
        logits, features: Of images in [0, 1], in batches, without gradients.
        arch: Architecture in the grammar of `--arch`; empty when unknown.
    """

    name: str
    logits: Callable[[Images], Logits]
    features: Callable[[Images], Features]
    arch: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """The verifier, reduced to what metrics ask: does a picture show the person it claims to show?

    Attributes:
        name: Architecture and first figures of the weights' hash.
        classes: Labels, ascending, of the classes it has held-out photographs of; of no other does it know anything.
        held_out: Whether 8-bit pictures of claimed classes match photographs that nobody trained on.
        train: The same for equally many training photographs.
    """

    name: str
    classes: Labels
    held_out: Callable[[Pixels, Labels], Bool[Tensor, " b"]]
    train: Callable[[Pixels, Labels], Bool[Tensor, " b"]]


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
        held_out: Test images of the attacked classes, on which nothing was fitted or chosen, with their features.
        confidence: The attacker's own ranking of the reconstructions; None when it has none.
        verify: The verifier; None when `unverified` says why.
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
    confidence: Float[Tensor, " n"] | None = None
    verify: Verification | None = None
    unverified: str = "no verifier was given"
    held_out: Dataset | None = None
    held_out_features: torch.Tensor | None = None


class Metric(ABC):
    """A frozen dataclass of settings; one metric file may return several measurements that share their work.

    Attributes:
        names: Names of the measurements, in order.
        leak_grows: For each of them, whether larger means more leakage.
        unit: Of all of them.
        default: Whether it is measured unless the user names others; False for what is expensive or unusual.
    """

    names: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]
    summary: ClassVar[str]
    default: ClassVar[bool] = True

    @abstractmethod
    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]: ...
