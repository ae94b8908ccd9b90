"""What a training minimises: a plain loss, or one that needs to know when it is asked and keeps a state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.core.dataset import Dataset
from mi_audit.core.defense import Stepper, Training
from mi_audit.core.types import Images, Labels, Scalar
from mi_audit.nn.precision import Precision, autocast

Loss = Callable[[nn.Module, Images, Labels], Scalar]


class Losses(NamedTuple):
    """The loss of one batch, a mean over it in single precision, and numbers to follow it by."""

    total: Scalar
    notes: Mapping[str, Scalar] = {}


@dataclass(frozen=True, slots=True)
class Position:
    """Where in a training a step happens: epoch and step from 0, the number of epochs, and how it computes."""

    seed: int
    epoch: int
    epochs: int
    step: int
    device: str
    precision: Precision


class Objective:
    """A loss alone, in the precision of the recipe.

    Args:
        loss: A mean over the batch.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    @property
    def images_per_class(self) -> int | None:
        """Pictures of one class in a batch that is balanced by class; None shuffles plainly."""
        return None

    @property
    def watches(self) -> frozenset[str] | None:
        """Modules whose outputs it looks at, when it otherwise needs nothing but the logits of the images it is given.

        None when it may change the images or look at the network in other ways.
        """
        return None

    def __call__(self, model: nn.Module, images: Images, labels: Labels, at: Position) -> Losses:
        with autocast(at.device, at.precision):
            return Losses(self._loss(model, images, labels).float())

    def stepper(self, model: nn.Module, optimiser: torch.optim.Optimizer, training: Training) -> Stepper | None:
        """What draws the batches and updates the weights in the place of the trainer, if anything does."""
        del model, optimiser, training
        return None

    def advance(self, stepper: Stepper, images: Images, labels: Labels, at: Position) -> Scalar:
        """Let the stepper make one step with a loss per image; the loss of the batch."""
        del at
        return stepper.step(images, labels, F.cross_entropy)

    def counts(self, epoch: int, epochs: int) -> bool:
        """Whether the weights of an epoch, from 0, may be the ones that are kept."""
        del epoch, epochs
        return True

    def state(self) -> dict[str, Any]:
        """What the following steps depend on besides the weights."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to `state`."""


def cross_entropy(model: nn.Module, images: Images, labels: Labels) -> Scalar:
    """The loss of an undefended model, in single precision."""
    return F.cross_entropy(model(images).float(), labels)


def training_on(train: Dataset, batch_size: int, *, epochs: int, before: int = 0, seed: int = 0) -> Training:
    """What a stepper has to know of a training on these images; the arguments are the attributes of `Training`."""
    largest = int(train.labels.bincount().max())
    return Training(
        images=len(train), largest_class=largest, batch_size=batch_size, epochs=epochs, before=before, seed=seed
    )
