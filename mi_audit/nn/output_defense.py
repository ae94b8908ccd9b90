"""What the defenses of an API's answers share: one edit of the manifest, and nothing in the training."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from mi_audit.core.defense import API_ONLY, Defense, Edit, Slot
from mi_audit.core.paper import Paper
from mi_audit.nn.output_rules import Rule

COARSER_ANSWERS = Paper(  # proposes fewer classes, labels alone and a temperature against membership inference
    title="Membership Inference Attacks Against Machine Learning Models",
    authors="Shokri et al.",
    venue="S&P 2017",
    url="https://arxiv.org/abs/1610.05820",
)


class OutputDefense(Defense):
    """A defense that changes what an API releases; a subclass says how in `rule`, from its settings.

    It protects API access only: whoever holds the weights reads the logits themselves.
    """

    smoke: ClassVar[Mapping[str, object]] = {}
    kind: ClassVar = "output-side"
    caution: ClassVar = API_ONLY
    slots: ClassVar = frozenset({Slot.OUTPUT})

    def __post_init__(self) -> None:
        self.rule()  # refuses settings out of range

    @abstractmethod
    def rule(self) -> Rule:
        """What the API makes of the logits.

        Raises:
            ConfigError: A setting is out of range.
        """

    def edits(self, net: nn.Module, example: Tensor) -> Sequence[Edit]:
        del net, example
        return (self.rule().edit(),)
