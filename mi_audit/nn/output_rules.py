"""Rules by which an API answers: what becomes of the logits before anybody outside sees them.

They protect an API only. Whoever holds the weights reads the logits themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from mi_audit.core.defense import Edit
from mi_audit.core.errors import ConfigError
from mi_audit.core.random import Streams
from mi_audit.core.types import Logits, Scores
from mi_audit.nn.edits import OUTPUT
from mi_audit.nn.plain_data import integer, number, truth

GRAIN = 2.0**-10  # logits that agree to this are the same question to the noise, whatever batch they came in
LOUDEST = 10  # noise ten times as large as any probability leaves nothing of the answer
SMALLEST = 1e-9  # probabilities are held this far from 0 and 1 before their logit is taken


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A pure function from logits to what is released, with its settings.

    Attributes:
        name: What an edit calls it.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, logits: Logits) -> Scores:
        """What is released: numbers in [0, 1], one per class; the sum of a row is 1 unless the rule says otherwise."""

    def edit(self) -> Edit:
        """The rule as plain data for a manifest."""
        return {"edit": OUTPUT, "rule": self.name, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class LabelOnly(Rule):
    """One for the predicted class, zero for the others."""

    name: ClassVar = "label-only"

    def __call__(self, logits: Logits) -> Scores:
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()


@dataclass(frozen=True, kw_only=True)
class TopK(Rule):
    """The `k` largest probabilities, zero for the others; all when there are fewer classes.

    Attributes:
        k: Classes that are shown.
        renormalise: Divide by their sum; otherwise the sum tells how much is hidden.

    Raises:
        ConfigError: `k` is below one.
    """

    name: ClassVar = "top-k"
    k: int = 3
    renormalise: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"expected k >= 1, got {self.k}; show at least the predicted class")

    def __call__(self, logits: Logits) -> Scores:
        scores = _softmax(logits)
        top = logits.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        shown = torch.zeros_like(scores).scatter(1, top, scores.gather(1, top))
        return _normalised(shown) if self.renormalise else shown


@dataclass(frozen=True, kw_only=True)
class Rounding(Rule):
    """Probabilities rounded to a number of decimals; a row may round to nothing but zeros.

    Attributes:
        decimals: Digits behind the point.
        renormalise: Divide by the sum; a row of zeros then becomes uniform.

    Raises:
        ConfigError: `decimals` is not from 1 to 6; single precision has no more.
    """

    name: ClassVar = "rounding"
    decimals: int = 3
    renormalise: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.decimals <= 6:
            raise ConfigError(f"expected decimals from 1 to 6, got {self.decimals}; use label-only for none")

    def __call__(self, logits: Logits) -> Scores:
        rounded = _softmax(logits).round(decimals=self.decimals)
        return _normalised(rounded) if self.renormalise else rounded


@dataclass(frozen=True, kw_only=True)
class Temperature(Rule):
    """`softmax(logits / temperature)`; the order of the classes stays.

    Attributes:
        temperature: Above one; larger is flatter.

    Raises:
        ConfigError: `temperature` is not above one.
    """

    name: ClassVar = "temperature"
    temperature: float = 5.0

    def __post_init__(self) -> None:
        if not 1 < self.temperature < float("inf"):
            raise ConfigError(f"expected a temperature above 1, got {self.temperature}; at 1 nothing is changed")

    def __call__(self, logits: Logits) -> Scores:
        return _softmax(logits.float() / self.temperature)


@dataclass(frozen=True, kw_only=True)
class OutputNoise(Rule):
    """`max(p + N(0, deviation^2), 0)`, renormalised; the noise is a function of the answer and of a secret.

    Fresh noise would be averaged away by asking the same question again. Here the same logits get the same noise, but
    an imperceptible change of the image gets other noise, so averaging over such changes still removes it.

    Attributes:
        deviation: Of the noise, in units of probability.
        secret: Key of the noise; whoever knows it and the logits knows the noise.

    Raises:
        ConfigError: `deviation` is not above 0 and at most 10, or `secret` has more than 64 bits.
    """

    name: ClassVar = "output-noise"
    deviation: float = 0.2
    secret: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.deviation <= LOUDEST:
            raise ConfigError(
                f"expected a deviation above 0 and at most {LOUDEST}, got {self.deviation}; leave the rule out for none"
            )
        if not -(2**63) <= self.secret < 2**64:
            raise ConfigError(f"expected a secret of 64 bits, got {self.secret}; shorten it")

    def __call__(self, logits: Logits) -> Scores:
        noise = Streams(self._keys(logits)).normal("output-noise", logits.shape[1])
        return _normalised((_softmax(logits) + self.deviation * noise).clamp_min(0))

    def _keys(self, logits: Logits) -> Int64[Tensor, " b"]:
        """A multilinear hash of each row, with random odd multipliers; integers wrap alike on every device."""
        generator = torch.Generator().manual_seed(self.secret)
        factors = torch.randint(-(2**62), 2**62, (logits.shape[1],), generator=generator) * 2 + 1
        return ((logits.float() / GRAIN).round().to(torch.int64) * factors.to(logits.device)).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class ReverseSigmoid(Rule):
    """`p - beta * (sigmoid(gamma * logit(p)) - 1/2)`, clipped to [0, 1] and renormalised.

    The curve falls near 0 and near 1, so that several probabilities give one answer. It may lift an unlikely class
    above an unsure prediction; the two then change places, so that the prediction is still released as such.

    Attributes:
        beta: Size of the perturbation.
        gamma: How early it sets in.

    Raises:
        ConfigError: `beta` or `gamma` is not positive and finite.
    """

    name: ClassVar = "reverse-sigmoid"
    beta: float = 1.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.beta < float("inf") and 0 < self.gamma < float("inf")):
            raise ConfigError(f"expected beta and gamma above 0, got {self.beta} and {self.gamma}; raise them")

    def __call__(self, logits: Logits) -> Scores:
        scores = _softmax(logits)
        bent = torch.sigmoid(self.gamma * torch.logit(scores.double(), eps=SMALLEST)) - 0.5
        released = (scores - self.beta * bent.float()).clamp(0, 1)
        largest, predicted = released.argmax(dim=1, keepdim=True), logits.argmax(dim=1, keepdim=True)
        values = released.gather(1, predicted), released.gather(1, largest)
        return _normalised(released.scatter(1, largest, values[0]).scatter(1, predicted, values[1]))


RULES: Mapping[str, type[Rule]] = {
    rule.name: rule for rule in (LabelOnly, TopK, Rounding, Temperature, OutputNoise, ReverseSigmoid)
}

# By type of the default; which numbers a rule takes, it says itself.
_CHECKS: Mapping[type, Callable[[str, object], object]] = {int: integer, bool: truth, float: number}


def answer(edits: Sequence[Edit]) -> Callable[[Logits], Scores] | None:
    """The rule among `edits`; None when there is none, and softmax is released.

    Raises:
        ConfigError: There are two rules, or one that is unknown or has other settings than it takes, or of other types.
    """
    rules = [edit for edit in edits if edit.get("edit") == OUTPUT]
    if not rules:
        return None
    if len(rules) > 1:
        raise ConfigError(
            f"expected one output rule, got {', '.join(str(edit.get('rule')) for edit in rules)}; keep one"
        )
    name, settings = str(rules[0].get("rule")), {k: v for k, v in rules[0].items() if k not in ("edit", "rule")}
    if name not in RULES:
        raise ConfigError(f"expected an output rule of {', '.join(RULES)}, got {name!r}; update mi-audit")
    for each in fields(RULES[name]):
        if each.name in settings:
            settings[each.name] = _CHECKS[type(each.default)](each.name, settings[each.name])
    try:
        return RULES[name](**settings)
    except TypeError as error:
        raise ConfigError(
            f"expected the settings of the output rule {name!r}, got '{error}'; the manifest is of another version"
        ) from error


def _softmax(logits: Logits) -> Scores:
    return logits.float().softmax(dim=1)


def _normalised(scores: Scores) -> Scores:
    total = scores.sum(dim=1, keepdim=True)
    return torch.where(total > 0, scores / total.clamp_min(torch.finfo(scores.dtype).tiny), 1 / scores.shape[1])
