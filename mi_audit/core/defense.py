"""The contract of a defense."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import nn

from mi_audit.core.paper import Paper
from mi_audit.core.types import Images, Labels, Scalar


class Prepared(NamedTuple):
    """A network ready to be trained, and what was done to it, in words and numbers for the manifest."""

    model: nn.Module
    facts: dict[str, object]


class Defense(ABC):
    """A frozen dataclass of hyper-parameters. The trainer owns the loop; a defense owns these steps.

    Attributes:
        paper: The publication of the method.
        smoke: The smallest settings that still work, for tests.
        kind: What it does to the information: information, data, gradient-masking, deception or output-side.
        adaptive: The attack that an attacker who knows the defense would run.
        needs_public_init: True when the network must start from weights trained on public images.
    """

    paper: ClassVar[Paper]
    smoke: ClassVar[Mapping[str, object]]
    kind: ClassVar[str]
    adaptive: ClassVar[str]
    needs_public_init: ClassVar[bool] = False

    def prepare(self, model: nn.Module, example: Images) -> Prepared:
        """Change the network before training: freeze, prune or insert layers. `example` is one batch to trace with."""
        del example
        return Prepared(model, {})

    @abstractmethod
    def loss(self, model: nn.Module, images: Images, labels: Labels) -> Scalar:
        """The training loss, a mean over the batch."""

    def finish(self, model: nn.Module) -> nn.Module:
        """Change the network after training. Default: leave it alone."""
        return model
