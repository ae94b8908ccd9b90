"""The model under audit, as the attacker is allowed to see it."""

import copy
import enum
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_audit.core.errors import QueryBudgetExceeded
from mi_audit.core.types import Features, Images, Labels, Logits, Scores


class Access(enum.IntEnum):
    """How much of the target the attacker holds; larger sees more."""

    LABEL_ONLY = 1
    SCORE = 2
    WHITE_BOX = 3

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


@dataclass
class QueryLedger:
    """Counts images, not calls: a batch of 64 costs 64.

    Attributes:
        budget: Images that may be asked for in all; None is unlimited.
        spent: Images asked for so far, by access.
    """

    budget: int | None = None
    spent: Counter[Access] = field(default_factory=Counter)

    def charge(self, access: Access, images: int) -> None:
        """Add `images` queries. Raises QueryBudgetExceeded before the query is answered."""
        if self.budget is not None and self.spent.total() + images > self.budget:
            raise QueryBudgetExceeded(
                f"expected at most {self.budget} queries, got {self.spent.total() + images}; raise --max-queries"
            )
        self.spent[access] += images


class Normalisation(NamedTuple):
    """A batch normalisation: what entered it in one pass, and what it learned to expect there, per channel."""

    inputs: Float[Tensor, "b c h w"]
    mean: Float[Tensor, " c"]
    variance: Float[Tensor, " c"]


class LabelOnlyTarget(ABC):
    """A target that answers with the predicted class and nothing else."""

    access: ClassVar = Access.LABEL_ONLY
    num_classes: int
    ledger: QueryLedger

    @abstractmethod
    def labels(self, images: Images) -> Labels: ...


class ScoreTarget(LabelOnlyTarget):
    """A target that answers with the probability of every class."""

    access: ClassVar = Access.SCORE

    @abstractmethod
    def scores(self, images: Images) -> Scores: ...


class WhiteBoxTarget(ScoreTarget):
    """A target whose weights the attacker holds."""

    access: ClassVar = Access.WHITE_BOX

    @abstractmethod
    def logits(self, images: Images) -> Logits:
        """Logits, differentiable with respect to the images; the weights never receive a gradient."""

    @abstractmethod
    def features(self, images: Images) -> Features:
        """The input of the last linear layer, differentiable like `logits`."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A copy of the network, for an attacker who looks into it or changes it; what it is asked is not counted."""

    @abstractmethod
    def logits_and_features(self, images: Images) -> tuple[Logits, Features]:
        """Both in one pass, counted once."""

    def logits_and_normalisations(self, images: Images) -> tuple[Logits, tuple[Normalisation, ...]]:
        """The logits, and every batch normalisation over positions on the way, in order; none where it has none."""
        return self.logits(images), ()


class TorchTarget(WhiteBoxTarget):
    """A target backed by a network; frozen and in eval mode from here on.

    Args:
        model: Maps images in [0, 1] to logits; it owns its resize and normalisation.
        num_classes: Number of logits.
        head: The last linear layer of `model`, whose input are the features.
        answer: What an API makes of the logits before it releases them; softmax by default. Who holds the weights
            reads the logits, so only `scores` and `labels` go through it.
        hasten: Makes a copy of `model` that gives the same logits with less work, for all passes that a gradient may
            come back through; called at the first of them.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        head: nn.Module,
        ledger: QueryLedger | None = None,
        answer: Callable[[Logits], Scores] | None = None,
        hasten: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.ledger = ledger or QueryLedger()
        self._head = head
        self._answer = answer
        self._model = model.eval().requires_grad_(False)
        self._hasten = hasten

    def labels(self, images: Images) -> Labels:
        self.ledger.charge(Access.LABEL_ONLY, len(images))
        with torch.no_grad():
            logits = self._model(images)
            if self._answer is None:
                return logits.argmax(dim=1)
            released = self._answer(logits)
            best = released == released.amax(dim=1, keepdim=True)  # the logits decide between equal scores
            return logits.masked_fill(~best, -torch.inf).argmax(dim=1)

    def scores(self, images: Images) -> Scores:
        self.ledger.charge(Access.SCORE, len(images))
        with torch.no_grad():
            logits = self._model(images)
            return logits.float().softmax(dim=1) if self._answer is None else self._answer(logits)

    def logits(self, images: Images) -> Logits:
        self.ledger.charge(Access.WHITE_BOX, len(images))
        model, _ = self._hastened
        return model(images)

    def features(self, images: Images) -> Features:
        return self.logits_and_features(images)[1]

    def logits_and_features(self, images: Images) -> tuple[Logits, Features]:
        self.ledger.charge(Access.WHITE_BOX, len(images))
        model, head = self._hastened
        caught: list[torch.Tensor] = []
        handle = head.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
        try:
            logits = model(images)
        finally:
            handle.remove()
        return logits, caught[-1].flatten(1)

    def network(self) -> nn.Module:
        return copy.deepcopy(self._model)

    @cached_property
    def _hastened(self) -> tuple[nn.Module, nn.Module]:
        """The network that gradients go through, and its last linear layer."""
        if self._hasten is None:
            return self._model, self._head
        model = self._hasten(self._model)
        place = next(name for name, module in self._model.named_modules() if module is self._head)
        return model, model.get_submodule(place)

    def logits_and_normalisations(self, images: Images) -> tuple[Logits, tuple[Normalisation, ...]]:
        self.ledger.charge(Access.WHITE_BOX, len(images))
        seen: list[Normalisation] = []

        def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if isinstance(layer.running_mean, Tensor) and isinstance(layer.running_var, Tensor):
                seen.append(Normalisation(inputs[0], layer.running_mean, layer.running_var))

        layers = [layer for layer in self._model.modules() if isinstance(layer, nn.BatchNorm2d)]
        handles = [layer.register_forward_pre_hook(watch) for layer in layers]
        try:
            return self._model(images), tuple(seen)
        finally:
            for handle in handles:
                handle.remove()


class LabelOnlyView(LabelOnlyTarget):
    """A target stripped to its predicted labels: the other methods do not exist on this object."""

    def __init__(self, target: LabelOnlyTarget) -> None:
        self.num_classes = target.num_classes
        self.ledger = target.ledger
        self._target = target

    def labels(self, images: Images) -> Labels:
        return self._target.labels(images)


class ScoreView(LabelOnlyView, ScoreTarget):
    """A target stripped to its scores."""

    def __init__(self, target: ScoreTarget) -> None:
        super().__init__(target)
        self._scored = target

    def scores(self, images: Images) -> Scores:
        return self._scored.scores(images)


def restricted(target: WhiteBoxTarget, access: Access) -> LabelOnlyTarget:
    """The view of `target` that an attacker with `access` gets."""
    return {Access.LABEL_ONLY: LabelOnlyView, Access.SCORE: ScoreView}.get(access, lambda whole: whole)(target)
