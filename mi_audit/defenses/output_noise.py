"""Output noise: an API that adds Gaussian noise to its probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from mi_audit.core.defense import API_ONLY, Defense, Edit, Slot
from mi_audit.core.paper import Paper
from mi_audit.nn.output_rules import OutputNoise


@dataclass(frozen=True, kw_only=True)
class NoisyOutput(Defense):
    """Release `max(p + N(0, deviation^2), 0)`, renormalised; it changes the predicted class of unsure answers.

    The noise is a function of the answer and a secret, so asking again does not average it away; averaging over
    imperceptible changes of the image does. It protects API access only: whoever holds the weights reads the
    logits themselves.

    Attributes:
        deviation: Of the noise, in units of probability.
        secret: Key of the noise; keep another one than the default to yourself.

    Raises:
        ConfigError: A setting is out of range.
    """

    paper: ClassVar = Paper(
        title="Exploring Connections Between Active Learning and Model Extraction",
        authors="Chandrasekaran et al.",
        venue="USENIX Security 2020",
        url="https://arxiv.org/abs/1811.02054",
    )
    smoke: ClassVar = {}
    kind: ClassVar = "output-side"
    adaptive: ClassVar = "average the answers over many imperceptible changes of the image"
    caution: ClassVar = API_ONLY
    slots: ClassVar = frozenset({Slot.OUTPUT})
    deviations: ClassVar = (
        "The published noise is fresh in every query and is averaged away by repeating one; here the same "
        "answer gets the same noise, which also makes audits repeatable.",
    )

    deviation: float = 0.2
    secret: int = 0

    def __post_init__(self) -> None:
        self.rule()

    def edits(self, net: nn.Module, example: Tensor) -> Sequence[Edit]:
        del net, example
        return (self.rule().edit(),)

    def rule(self) -> OutputNoise:
        """What the API makes of the logits."""
        return OutputNoise(deviation=self.deviation, secret=self.secret)
