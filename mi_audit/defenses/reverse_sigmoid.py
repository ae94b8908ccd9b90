"""Reverse sigmoid: an API that bends its probabilities so that several of them give one answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from mi_audit.core.defense import API_ONLY, Defense, Edit, Slot
from mi_audit.core.paper import Paper
from mi_audit.nn.output_rules import ReverseSigmoid


@dataclass(frozen=True, kw_only=True)
class ReverseSigmoidOutput(Defense):
    """Release `p - beta * (sigmoid(gamma * logit(p)) - 1/2)`, clipped to [0, 1] and renormalised.

    The order of unlikely classes is deceptive; the predicted class is not. It protects API access only: whoever
    holds the weights reads the logits themselves.

    Attributes:
        beta: Size of the perturbation.
        gamma: How early it sets in.

    Raises:
        ConfigError: A setting is out of range.
    """

    paper: ClassVar = Paper(
        title="Defending Against Machine Learning Model Stealing Attacks Using Deceptive Perturbations",
        authors="Lee et al.",
        venue="arXiv 2018",
        url="https://arxiv.org/abs/1806.00054",
    )
    smoke: ClassVar = {}
    kind: ClassVar = "output-side"
    adaptive: ClassVar = "attack by labels alone; or train a surrogate on the answers and attack that"
    caution: ClassVar = API_ONLY
    slots: ClassVar = frozenset({Slot.OUTPUT})
    deviations: ClassVar = (
        "Where the curve lifts an unlikely class above an unsure prediction, the two change places, so that "
        "accuracy stays.",
    )

    beta: float = 1.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self.rule()

    def edits(self, net: nn.Module, example: Tensor) -> Sequence[Edit]:
        del net, example
        return (self.rule().edit(),)

    def rule(self) -> ReverseSigmoid:
        """What the API makes of the logits."""
        return ReverseSigmoid(beta=self.beta, gamma=self.gamma)
