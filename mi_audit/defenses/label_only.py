"""Label-only output: an API that answers with the predicted class and no probability."""

from dataclasses import dataclass
from typing import ClassVar

from mi_audit.nn.output_defense import COARSER_ANSWERS, OutputDefense
from mi_audit.nn.output_rules import LabelOnly


@dataclass(frozen=True, kw_only=True)
class LabelOnlyOutput(OutputDefense):
    """Release one for the predicted class and zero for the others.

    Attacks that need labels alone, such as those that search for the centre of a class region, are not stopped.
    It protects API access only: whoever holds the weights reads the logits themselves.
    """

    paper: ClassVar = COARSER_ANSWERS
    adaptive: ClassVar = (
        "attack by labels alone, with gradients estimated from many labels around a point, and average over views"
    )

    def rule(self) -> LabelOnly:
        return LabelOnly()
