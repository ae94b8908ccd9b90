"""DP-SGD: bound what the weights can tell about any single training image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mi_audit.core.defense import Defense, Edit, Slot, Stepper, Training
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.nn.group_norm import training_batch_norms


@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """Clip the gradient of every image, add normal noise, and account for what that spends of a budget (Algorithm 1).

    The guarantee is about records: with one image added or removed, no outcome is more than `exp(epsilon)` times as
    likely, but for `delta`. Inversion recovers what the images of a person have in common, and for n images of a person
    the bound is `n * epsilon`, which at usual budgets bounds nothing. Batch normalisations that train are replaced by
    group normalisations. With a frozen public backbone (`tldmi+dp-sgd`, recommended) only few weights need noise, and
    its batch normalisations stay. The accuracy is best with large batches: `--train-batch-size 1024`.

    Attributes:
        epsilon: The budget, met or undercut at the end of the last epoch.
        delta: Of the budget; None is `1 / (1.1 * images)`.
        max_grad_norm: Largest norm of the gradient of one image.
        accountant: `prv` is tight, `rdp` a looser bound that is faster to compute.
        at_once: Images whose gradients are held in memory together; it does not change the result.
        secret: Draw batches and noise from the operating system's entropy, so that a second training differs. Drawn
            from the seed they are repeatable, and no guarantee against anybody who can learn the seed.

    Raises:
        ConfigError: A setting is out of range, or a batch normalisation would train all the same.
    """

    paper: ClassVar = Paper(
        title="Deep Learning with Differential Privacy",
        authors="Abadi et al.",
        venue="CCS 2016",
        url="https://arxiv.org/abs/1607.00133",
    )
    smoke: ClassVar = {"epsilon": 50.0, "accountant": "rdp", "secret": False}
    kind: ClassVar = "information"
    adaptive: ClassVar = "the strongest attack on an undefended model, with more restarts and averaged over views"
    caution: ClassVar = (
        "The budget is about single images, not about people: for n images of a person it is n times as large, which "
        "usually bounds nothing. Noise drawn from a known seed (secret=false) gives no guarantee at all."
    )
    slots: ClassVar = frozenset({Slot.SURGERY, Slot.STEP})
    excludes: ClassVar = {
        "mid": "its KL term is added outside the gradients that are clipped, so it would escape the noise that the "
        "privacy budget counts",
        "bido": "its loss couples the images of a batch, so there is no gradient of one image to clip",
        "trap-mid": "its triggers are learned from private gradients that no noise covers",
        "atat": "its inner loop uses private gradients that no noise covers",
    }
    untested: ClassVar = {"negls": "negative labels pull at the logits without end, and clipping bounds how fast"}
    deviations: ClassVar = (
        "Batches are drawn by Poisson sampling and the sum of gradients is divided by the expected batch size, as the "
        "accountant assumes; published baselines of inversion shuffle, and do not account at all.",
        "The noise comes from an ordinary generator with a secret key of 62 bits, in single precision: enough against "
        "inversion, not against an attacker who exploits the floating point representation of noise.",
        "All is computed in single precision, whatever --precision says; the manifest says so, too.",
        "Choosing the epoch on the validation images, and tuning, are not accounted for.",
    )

    epsilon: float = 8.0
    delta: float | None = None
    max_grad_norm: float = 1.0
    accountant: str = "prv"
    at_once: int = 32
    secret: bool = True

    def __post_init__(self) -> None:
        require_finite(self)
        if min(self.epsilon, self.max_grad_norm) <= 0:
            raise ConfigError(
                f"expected epsilon and max_grad_norm above 0, got {self.epsilon} and {self.max_grad_norm}; raise them"
            )
        if self.delta is not None and not 0 < self.delta < 1:
            raise ConfigError(f"expected delta between 0 and 1, got {self.delta}; leave it out for 1 / (1.1 images)")
        if self.at_once < 1:
            raise ConfigError(f"expected at_once >= 1, got {self.at_once}; it is a number of images")
        if self.accountant not in ("prv", "rdp"):
            raise ConfigError(f"expected the accountant prv or rdp, got {self.accountant!r}; use prv, the tight one")

    def edits(self, net: nn.Module, example: Tensor) -> Sequence[Edit]:
        """Group normalisation for what would train; layers that will be frozen must not require a gradient already."""
        del example
        modules = training_batch_norms(net)
        return ({"edit": "group-norm", "modules": list(modules)},) if modules else ()

    def stepper(self, model: nn.Module, optimiser: torch.optim.Optimizer, training: Training) -> Stepper:
        from mi_audit.train.private_steps import (  # loading Opacus takes longer than most commands
            PrivateSteps,
            noise_for,
        )

        delta = self.delta or 1 / (1.1 * training.images)
        steps = -(-training.images // training.batch_size)
        return PrivateSteps(
            model, optimiser, training, delta=delta, max_grad_norm=self.max_grad_norm, accounting=self.accountant,
            noise=noise_for(self.epsilon, delta, 1 / steps, steps * training.epochs, self.accountant),
            at_once=self.at_once, secret=self.secret,
        )  # fmt: skip
