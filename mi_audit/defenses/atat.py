"""AT-AT: make every image one invisible step from every class; attacks find noise, and anyone can fool the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from mi_audit.core.defense import MASKING, Defense, Slot, Step, Term
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.types import Labels
from mi_audit.nn.objectives import cross_entropy
from mi_audit.nn.precision import single
from mi_audit.nn.shortcuts import hardly_pushed, mislead, push_notes


@dataclass(frozen=True, kw_only=True)
class ATAT(Defense):
    """Anti-adversarial training: learn features that generalise and break at the slightest push.

    `CE(f(x), y) + weight CE(f(x + delta), y')`, where y' is any class but y and delta, at most `reach` per pixel, is
    the best push towards y' that a few sign steps find. The second term is minimised, too: the network learns to fall.

    The price is the purpose: the classifier becomes trivially attackable. Whoever has its gradients can turn an image
    into any class by a quarter of a thousandth of the pixel range, less than eight bits hold. Never use it where
    somebody gains from a wrong answer. The information stays in the weights; only the gradient, which points at noise,
    no longer leads to it. So the kind is gradient masking, however private the model looks to plain attacks.

    Attributes:
        accept_fragility: Must be true: you know that anybody can fool this model.
        weight: Of the second term (lambda).
        reach: Largest change of a pixel (epsilon), on the scale [0, 1].
        step: Change of a pixel per sign step, on the same scale.
        steps: Sign steps; each is a pass forward and back.

    Raises:
        ConfigError: The fragility is not accepted, or a number is out of range.
    """

    paper: ClassVar = Paper(
        title="Reducing information dependency does not cause training data privacy. "
        "Adversarially non-robust features do.",
        authors="Torp et al.",
        venue="ICLR 2026",
        url="https://openreview.net/forum?id=BnEG8pn3pK",
    )
    smoke: ClassVar = {"accept_fragility": True, "steps": 2}
    kind: ClassVar = "gradient-masking"
    adaptive: ClassVar = (
        "distil the model into a student trained to be adversarially robust and attack the student; round images "
        "to eight bits and average gradients over noisy copies, so that features that fine cancel"
    )
    caution: ClassVar = (
        "Anybody can make this model answer any class by an invisible change of the image: never use it where somebody "
        f"gains from a wrong answer. {MASKING}"
    )
    slots: ClassVar = frozenset({Slot.TERM})
    looks_again: ClassVar = True
    excludes: ClassVar = {"trap-mid": "both shape what lies one faint change away from an image, and undo each other's"}
    untested: ClassVar = {
        "mid": "the search runs without the noise of the head, which blurs what it finds",
        "negls": "both make the gradient misleading; neither effect can be told from the other",
    }
    deviations: ClassVar = (
        "Images lie in [0, 1] instead of [-1, 1], so reach and step are half of the published 5e-4 and 1e-4.",
        "The search for the push runs in eval mode; the published one runs in training mode, where every sign step "
        "moves the running statistics of batch norms and draws new dropout.",
        "The search and the forward pass of the term are computed in true single precision: bfloat16 and TF32 round "
        "such a push away. The backward pass to the weights is the trainer's, in which TF32 may round.",
    )

    accept_fragility: bool = False
    weight: float = 0.08
    reach: float = 2.5e-4
    step: float = 5e-5
    steps: int = 5

    def __post_init__(self) -> None:
        require_finite(self)
        if not self.accept_fragility:
            raise ConfigError(
                "expected accept_fragility=true, got false: atat makes the model trivially attackable, whoever has it "
                "can turn images into any class unseen; set it if that is harmless here, or choose another defense"
            )
        if min(self.weight, self.reach, self.step) <= 0 or self.steps < 1:
            raise ConfigError(
                f"expected weight, reach and step > 0 and steps >= 1, "
                f"got {self.weight}, {self.reach}, {self.step}, {self.steps}; raise them"
            )

    def term(self, step: Step) -> Term:
        images, rng = step.images, step.moment.rng
        labels = _others(step.labels, step.logits.shape[1], rng)
        start = torch.rand(images.shape, generator=rng).to(images.device)
        with single(images.device.type):
            pushed = mislead(
                step.model, images, labels, start, reach=self.reach, step=self.step, steps=self.steps
            )  # fmt: skip
            missed = cross_entropy(step.model(pushed), labels).mean()
        return Term(self.weight * missed, push_notes(missed, "push_loss", step.logits.shape[1]))

    def shortfall(self, notes: Mapping[str, float]) -> str:
        """The loss of pushed images did not come half the way down from that of guessing."""
        losses = hardly_pushed(notes, "push_loss")
        return losses and (
            f"pushed images are hardly taken for the class they are pushed to {losses}, so the model hardly learned to "
            f"fall; raise the epochs or atat.weight, which is {self.weight:g}"
        )


def _others(labels: Labels, classes: int, rng: torch.Generator) -> Labels:
    """For every label one of the other classes, each as likely."""
    return (labels + torch.randint(1, classes, labels.shape, generator=rng).to(labels.device)) % classes
