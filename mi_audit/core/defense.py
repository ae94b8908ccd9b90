"""The contract of a defense: which slots of the training it fills, so that several compose over one trainer."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from mi_audit.core.paper import Paper
from mi_audit.core.types import Images, Labels, Logits, Scalar

MAIN = "main"
API_ONLY = (
    "Protects the answers of an API only. Whoever holds the weights reads the exact scores, and nothing is protected."
)
MASKING = "May only stop attacks that follow its gradient: the weights may know as much about people as before."
Edit = Mapping[str, object]
"""One change of a network's architecture in plain values: `edit` names it (`nn.edits`), the rest are its settings."""


class Slot(enum.IntEnum):
    """Where a defense acts, in order of application. Two defenses cannot both fill an `exclusive` one."""

    SURGERY = 1
    HEAD = 2
    FREEZE = 3
    DATA = 4
    LOSS = 5
    TERM = 6
    PHASE = 7
    STEP = 8
    OUTPUT = 9

    @property
    def exclusive(self) -> bool:
        """Whether one defense at most fills it."""
        return self in (Slot.HEAD, Slot.FREEZE, Slot.LOSS, Slot.STEP, Slot.OUTPUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the training before or after the main one.

    Attributes:
        name: What it is called in messages and in `Moment.phase`; `main` is taken.
        when: Before or after the main phase.
        epochs: Passes over the training images; those of a phase before come out of the main phase's.
        recipe: Fields of the trainer's recipe that differ from the main phase's; without any, both share one schedule.
        keep: Which weights the phase ends with: those that did best on the validation images, or the last.
        part: Dotted name of the only module that trains; None trains all that is not frozen.
    """

    name: str
    when: Literal["before", "after"]
    epochs: int
    recipe: Mapping[str, object] = field(default_factory=dict)
    keep: Literal["best", "last"] = "best"
    part: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """When a training step happens.

    Attributes:
        phase: Name of the phase, `main` unless a defense adds others.
        epoch, epochs: Epoch in this phase, from 0, and their number.
        rng: Random numbers of this step and this defense alone, on the CPU: the same after a resume.
    """

    phase: str
    epoch: int
    epochs: int
    rng: torch.Generator


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One batch after the forward pass that all terms share.

    Attributes:
        model: The network in training mode; maps images in [0, 1] to logits.
        images, labels: The batch, after every transform.
        logits: Of the network, in single precision.
        taps: What the modules named by `Defense.taps` gave, by name.
        base: The base loss of the batch, with its graph.
        moment: When.
        companion: What the defense trains beside the network; None without one.
    """

    model: nn.Module
    images: Images
    labels: Labels
    logits: Logits
    taps: Mapping[str, Tensor]
    base: Scalar
    moment: Moment
    companion: nn.Module | None


class Term(NamedTuple):
    """What a defense adds to the loss, weighted, and numbers to follow it by, all on the device."""

    value: Scalar
    notes: Mapping[str, Scalar] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a stepper has to know of a training before its first step.

    Attributes:
        images: Training images.
        largest_class: Images of the class that has most of them.
        batch_size: Images in a step, on average.
        epochs, before: Passes over the images, in all phases together, and how many of them earlier phases made.
        seed: Of the training.
    """

    images: int
    largest_class: int
    batch_size: int
    epochs: int
    before: int = 0
    seed: int


class Stepper(ABC):
    """STEP: draws the batches and updates the weights in the place of the trainer.

    The trainer makes one per phase once model and optimiser are there, goes through `batches` in every epoch,
    transforms each batch and hands it to `step`, and calls `close` whatever happened.

    Attributes:
        steps: Batches per epoch.
    """

    steps: int

    @abstractmethod
    def batches(
        self, take: Callable[[Int64[Tensor, " b"], torch.Generator], tuple[Images, Labels]], epoch: int
    ) -> Iterator[tuple[Images, Labels]]:
        """The batches of an epoch, counted from 0; a batch may be empty.

        Args:
            take: The training images with these numbers and their labels, augmented by the generator, on the device.
            epoch: Which; the same epoch has the same batches after a resume.
        """

    @abstractmethod
    def step(self, images: Images, labels: Labels, objective: Callable[[Logits, Labels], Scalar]) -> Scalar:
        """Update the weights.

        Args:
            images: A batch; changes of it must not have mixed images.
            labels: Their classes.
            objective: The loss, a mean over the batch of a loss per image; it is asked about one image at a time.

        Returns:
            The loss of the batch before the update, detached.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What the following epochs depend on besides weights and optimiser."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to `state`."""

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """What was done so far, in plain values with a `summary`."""

    @abstractmethod
    def close(self) -> None:
        """Take everything off model and optimiser that was put there."""


class Defense(ABC):
    """A frozen dataclass of hyper-parameters. The trainer owns the loop; a defense fills the slots it declares.

    The order is: `edits`, public weights loaded, `freeze_layers`, `companion`; then in every step `transform`, one
    forward pass, `objective`, `term`.

    Attributes:
        paper: The publication of the method.
        smoke: The smallest settings that still work, for tests.
        kind: What it does to the information: information, data, gradient-masking, deception or output-side.
        adaptive: The attack that an attacker who knows the defense would run.
        caution: What those who get or rely on a model so trained must be told; empty when there is nothing special.
        slots: What it fills; a method of a slot that is not declared is not called.
        needs_public_init: True when the network must start from weights trained on public images.
        deviations: What differs from the published code, and why.
        excludes: Defenses it cannot be combined with, by command-line name, each with the reason.
        untested: Defenses with which it has no published combination and a doubt, each with the doubt.
        only_notes: Whether its term adds nothing to the loss, so that a training without it gives the same weights.
        looks_again: Whether its term runs the network once more, or follows gradients to the images. Otherwise, where
            the images stay the same, frozen layers may run once for the whole training instead of in every step.
        images_per_class: Number of pictures per class in a batch when batches must be balanced; None draws at random.
    """

    paper: ClassVar[Paper]
    smoke: ClassVar[Mapping[str, object]]
    kind: ClassVar[str]
    adaptive: ClassVar[str]
    caution: ClassVar[str] = ""
    slots: ClassVar[frozenset[Slot]]
    needs_public_init: ClassVar[bool] = False
    deviations: ClassVar[tuple[str, ...]] = ()
    excludes: ClassVar[Mapping[str, str]] = {}
    untested: ClassVar[Mapping[str, str]] = {}
    only_notes: ClassVar[bool] = False
    looks_again: ClassVar[bool] = False

    @property
    def images_per_class(self) -> int | None:
        """Pictures of one class in a batch that is balanced by class; None shuffles plainly."""
        return None

    def conflicts(self, others: Mapping[str, "Defense"]) -> str:
        """Why it cannot be combined with `others` as they are set, and what to set; for more than that: `excludes`.

        Args:
            others: The other defenses of the training, by command-line name.
        """
        del others
        return ""

    def edits(self, net: nn.Module, example: Tensor) -> Sequence[Edit]:
        """SURGERY, HEAD: changes of the architecture, before any weights are loaded; kept in the manifest.

        Args:
            net: The network proper, without input normalisation; not changed here.
            example: Images to trace it with, resized and normalised.
        """
        del net, example
        return ()

    def freeze_layers(self, model: nn.Module, example: Images) -> dict[str, object]:
        """FREEZE: take parameters out of training; what was decided, in plain values with a `summary`."""
        del model, example
        return {}

    def companion(self, model: nn.Module, num_classes: int, example: Images) -> nn.Module | None:
        """What is trained beside the network and thrown away; its `state_dict` (and extra state) resumes it."""
        del model, num_classes, example
        return None

    def enter(self, model: nn.Module, phase: str) -> None:
        """PHASE: called when a phase begins or is resumed."""
        del model, phase

    def phases(self) -> Sequence[Phase]:
        """PHASE: parts of the training besides the main one."""
        return ()

    def in_force(self, epoch: int, epochs: int) -> bool:
        """LOSS: whether weights of an epoch of the main phase, from 0, carry the whole defense; others are not kept."""
        del epoch, epochs
        return True

    def shortfall(self, notes: Mapping[str, float]) -> str:
        """Why the training may not have done what it is for; empty when nothing speaks against it.

        Args:
            notes: Means over the last epoch in which it gave any, by the names that `term` gave them.
        """
        del notes
        return ""

    def transform(self, images: Images, labels: Labels, moment: Moment) -> Images:
        """DATA: change the training images, in [0, 1], after augmentation."""
        del labels, moment
        return images

    def stepper(self, model: nn.Module, optimiser: torch.optim.Optimizer, training: Training) -> Stepper | None:
        """STEP: what draws the batches and updates the weights in the place of the trainer."""
        del model, optimiser, training
        return None

    def taps(self, model: nn.Module, example: Images) -> Sequence[str]:
        """TERM: dotted names of the modules of `model` whose outputs `term` needs."""
        del model, example
        return ()

    def objective(self, logits: Logits, labels: Labels, moment: Moment) -> Scalar | None:
        """LOSS, PHASE: the base loss in the place of cross-entropy, a mean over the batch; None leaves it."""
        del logits, labels, moment
        return None

    def term(self, step: Step) -> Term | None:
        """TERM: what is added to the base loss; None in phases without it."""
        del step
        return None
