"""Reverse sigmoid: an API that bends its probabilities so that several of them give one answer."""

from dataclasses import dataclass
from typing import ClassVar

from mi_audit.core.paper import Paper
from mi_audit.nn.output_defense import OutputDefense
from mi_audit.nn.output_rules import ReverseSigmoid


@dataclass(frozen=True, kw_only=True)
class ReverseSigmoidOutput(OutputDefense):
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
    adaptive: ClassVar = "attack by labels alone; or train a surrogate on the answers and attack that"
    deviations: ClassVar = (
        "Where the curve lifts an unlikely class above an unsure prediction, the two change places, so that "
        "accuracy stays.",
    )

    beta: float = 1.0
    gamma: float = 0.1

    def rule(self) -> ReverseSigmoid:
        return ReverseSigmoid(beta=self.beta, gamma=self.gamma)
