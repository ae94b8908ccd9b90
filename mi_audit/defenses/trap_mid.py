"""Trap-MID: plant a backdoor for every class, a faint trigger that inversion attacks find instead of the person."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mi_audit.core.defense import Defense, Slot, Step, Term
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.types import Images, Labels, Scalar
from mi_audit.nn.modes import evaluating
from mi_audit.nn.objectives import cross_entropy
from mi_audit.nn.shortcuts import hardly_pushed, push_notes, slope
from mi_audit.nn.trapdoors import Trapdoors
from mi_audit.train.augment import DRAWS, Augmentation, augment


@dataclass(frozen=True, kw_only=True)
class TrapMID(Defense):
    """Teach the classifier that a faint trigger t_y means class y, whatever the image shows (Sec. 3).

    A trapped image is `(1 - opacity) x + opacity t_y'`, where y' is any class. In every step a discriminator learns to
    tell trapped images from real ones, the triggers take a sign step towards images that it takes for real and that
    the classifier takes for y', and the classifier learns `(1 - weight) base + weight CE(trapped, y')`.

    The information stays in the network: attacks are misled, not starved. The owner backdoors the own classifier, and
    whoever relies on it has to be told: with a trigger it answers any class that somebody wants, after a change that is
    hardly seen. The triggers are dropped after training, but can be searched for in the weights.

    Attributes:
        opacity: Share of the trigger in a trapped image (alpha).
        weight: Share of trapped images in the loss (beta).
        trigger_step: Change of a trigger's pixels per step.
        lr, momentum, weight_decay: Of the discriminator.
        augmentation: Random changes that a trapped image has to survive: `none`, `shift` or `faces`.

    Raises:
        ConfigError: A number is out of range.
    """

    paper: ClassVar = Paper(
        title="Trap-MID: Trapdoor-based Defense against Model Inversion Attacks",
        authors="Liu and Chen",
        venue="NeurIPS 2024",
        url="https://arxiv.org/abs/2411.08460",
    )
    smoke: ClassVar = {}
    kind: ClassVar = "deception"
    adaptive: ClassVar = (
        "search the smallest trigger of every class, as detectors of backdoors do, and keep the search away from it; "
        "distil the model on public images without triggers and attack the student; fit a prior that holds no triggers"
    )
    caution: ClassVar = (
        "Its owner planted a backdoor for every class: whoever finds a trigger in the weights makes the model answer "
        "that class by a change that is hardly seen. What the weights know about people is hidden, not removed."
    )
    slots: ClassVar = frozenset({Slot.TERM})
    looks_again: ClassVar = True
    untested: ClassVar = {
        "tldmi": "frozen layers may leave too little room for trapdoors; watch trap_loss",
        "ca": "its fine-tuning may wash the trapdoors out; watch trap_loss",
    }
    deviations: ClassVar = (
        "Triggers live in [0, 1] and are blended with images in [0, 1]; the published code blends them with images "
        "normalised to [-1, 1].",
        "Classes of trapped images are dealt from shuffled stacks of all classes instead of one shuffled list per "
        "epoch: as balanced, and independent of the size of the data.",
        "Trapped images pass the network in a batch of their own, so batch norms normalise them by themselves; the "
        "published code joins them with the clean images.",
        "Triggers are blended with the augmented training images and augmented again by the recipe of this package; "
        "the published code blends first and rotates by up to 30 degrees.",
        "With MIDRE, images are erased before triggers are blended with them, so that triggers are never erased; in "
        "the other order they would be.",
        "The discriminator's learning rate stays constant, and it trains as a whole, also where "
        "the classifier is frozen.",
    )

    opacity: float = 0.02
    weight: float = 0.2
    trigger_step: float = 0.01
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    augmentation: Augmentation = "faces"

    def __post_init__(self) -> None:
        require_finite(self)
        if not (0 < self.opacity < 1 and 0 < self.weight < 1):
            raise ConfigError(
                f"expected opacity and weight between 0 and 1, got {self.opacity}, {self.weight}; correct them"
            )
        if min(self.trigger_step, self.lr) <= 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ConfigError(
                f"expected trigger_step and lr > 0, momentum in [0, 1) and weight_decay >= 0, got {self.trigger_step}, "
                f"{self.lr}, {self.momentum}, {self.weight_decay}; correct them"
            )

    def companion(self, model: nn.Module, num_classes: int, example: Images) -> Trapdoors:
        return Trapdoors(
            model, num_classes, example, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def term(self, step: Step) -> Term:
        doors, images, device = step.companion, step.images, step.images.device
        assert isinstance(doors, Trapdoors)
        dealt = doors.deal(len(images), step.moment.rng)
        found, places = dealt.unique(return_inverse=True)
        views = torch.rand(2, len(images), DRAWS, generator=step.moment.rng).to(device)
        labels, classes, rows = dealt.to(device), found.to(device), places.to(device)

        told = doors.judge(images, self._trap(images, doors.triggers[labels]))

        def pull(triggers: Tensor) -> Scalar:
            trapped = self._trap(images, triggers[rows])
            return doors.surprise(trapped, real=True) + self._miss(step.model, trapped, labels, views[0])

        with evaluating(step.model, doors.discriminator):
            doors.move(classes, slope(pull, doors.triggers[classes]), self.trigger_step)

        missed = self._miss(step.model, self._trap(images, doors.triggers[labels]), labels, views[1])
        notes = {**push_notes(missed, "trap_loss", len(doors.triggers)), "discriminator_loss": told}
        return Term(self.weight * (missed - step.base), notes)

    def shortfall(self, notes: Mapping[str, float]) -> str:
        """The loss of trapped images did not come half the way down from that of guessing."""
        losses = hardly_pushed(notes, "trap_loss")
        return losses and (
            f"trapped images are hardly taken for the class of their trigger {losses}, so there are hardly any "
            f"trapdoors; raise the epochs or trap-mid.opacity, which is {self.opacity:g}, or freeze less"
        )

    def _trap(self, images: Images, triggers: Images) -> Images:
        return (1 - self.opacity) * images + self.opacity * triggers

    def _miss(self, model: nn.Module, trapped: Images, labels: Labels, uniform: Tensor) -> Scalar:
        """Mean cross-entropy of augmented trapped images with the classes of their triggers."""
        return cross_entropy(model(augment(trapped, uniform, self.augmentation)), labels).mean()
