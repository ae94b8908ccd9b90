"""Temperature: an API that flattens its probabilities."""

from dataclasses import dataclass
from typing import ClassVar

from mi_audit.nn.output_defense import COARSER_ANSWERS, OutputDefense
from mi_audit.nn.output_rules import Temperature


@dataclass(frozen=True, kw_only=True)
class TemperatureOutput(OutputDefense):
    """Release `softmax(logits / temperature)`.

    The map is one to one: an attacker who guesses the temperature undoes it exactly. It hides precision only
    together with a number format that has little of it. It protects API access only: whoever holds the weights
    reads the logits themselves.

    Attributes:
        temperature: Above one; larger is flatter.

    Raises:
        ConfigError: A setting is out of range.
    """

    paper: ClassVar = COARSER_ANSWERS
    adaptive: ClassVar = "take the logarithm of the answer, which is the logits up to a factor and a constant"

    temperature: float = 5.0

    def rule(self) -> Temperature:
        return Temperature(temperature=self.temperature)
