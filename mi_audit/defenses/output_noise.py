"""Output noise: an API that adds Gaussian noise to its probabilities."""

from dataclasses import dataclass
from typing import ClassVar

from mi_audit.core.paper import Paper
from mi_audit.nn.output_defense import OutputDefense
from mi_audit.nn.output_rules import OutputNoise


@dataclass(frozen=True, kw_only=True)
class NoisyOutput(OutputDefense):
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
    adaptive: ClassVar = "average the answers over many imperceptible changes of the image"
    deviations: ClassVar = (
        "The published noise is fresh in every query and is averaged away by repeating one; here the same "
        "answer gets the same noise, which also makes audits repeatable.",
    )

    deviation: float = 0.2
    secret: int = 0

    def rule(self) -> OutputNoise:
        return OutputNoise(deviation=self.deviation, secret=self.secret)
