"""Rounding: an API whose probabilities have few decimals."""

from dataclasses import dataclass
from typing import ClassVar

from mi_audit.core.paper import Paper
from mi_audit.nn.output_defense import OutputDefense
from mi_audit.nn.output_rules import Rounding


@dataclass(frozen=True, kw_only=True)
class RoundingOutput(OutputDefense):
    """Release probabilities rounded to `decimals` digits.

    Gradients estimated from small changes vanish; averages over large changes do not. It protects API access
    only: whoever holds the weights reads the logits themselves.

    Attributes:
        decimals: Digits behind the point.
        renormalise: Whether the rounded probabilities are divided by their sum.

    Raises:
        ConfigError: A setting is out of range.
    """

    paper: ClassVar = Paper(
        title="Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures",
        authors="Fredrikson et al.",
        venue="CCS 2015",
        url="https://doi.org/10.1145/2810103.2813677",
    )
    adaptive: ClassVar = (
        "estimate gradients over larger changes of the image, whose effect survives rounding, or by labels alone"
    )
    deviations: ClassVar = ("The paper rounds to multiples such as 0.05; here, as in later toolboxes, to decimals.",)

    decimals: int = 3
    renormalise: bool = False

    def rule(self) -> Rounding:
        return Rounding(decimals=self.decimals, renormalise=self.renormalise)
