"""Top-k output: an API that shows only the largest probabilities."""

from dataclasses import dataclass
from typing import ClassVar

from mi_audit.nn.output_defense import COARSER_ANSWERS, OutputDefense
from mi_audit.nn.output_rules import TopK


@dataclass(frozen=True, kw_only=True)
class TopKOutput(OutputDefense):
    """Release the `k` largest probabilities and zero for the others.

    The probability of the attacked class is shown as soon as it is among them, which is when an attack needs
    it. It protects API access only: whoever holds the weights reads the logits themselves.

    Attributes:
        k: Classes that are shown.
        renormalise: Whether the shown probabilities are divided by their sum.

    Raises:
        ConfigError: A setting is out of range.
    """

    paper: ClassVar = COARSER_ANSWERS
    adaptive: ClassVar = (
        "start from images that the target already puts into the attacked class; go on by labels alone where "
        "nothing is shown"
    )
    deviations: ClassVar = (
        "The published mitigation is measured against membership inference; against inversion it is a common "
        "baseline only.",
    )

    k: int = 3
    renormalise: bool = False

    def rule(self) -> TopK:
        return TopK(k=self.k, renormalise=self.renormalise)
