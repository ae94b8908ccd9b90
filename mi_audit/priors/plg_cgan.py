"""PLG-MI's prior: a conditional generator, trained on the public images that the target takes for its classes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import ConditionalPrior, LatentSpace, PriorRecipe, Progress
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Latents
from mi_audit.nn.adversarial_targeted import ConditionalHinge
from mi_audit.nn.gan import Networks, count_weights, hastened, packed, quick_steps, unpack
from mi_audit.nn.gan_conditional import light_conditional, published_conditional
from mi_audit.nn.precision import Precision
from mi_audit.nn.pseudo_labels import reuse, top_n
from mi_audit.nn.views import Chain, Jitter, RandomCrop, Rotation
from mi_audit.train import gan
from mi_audit.train.seeding import seeded

STEPS = 150_000  # 30,000 generator updates of 5 critic updates each
ASKED = 256  # public images the target is asked about at once
FEWEST = 30  # images per class; the published number for 1000 classes and 30,000 images


@dataclass(frozen=True, kw_only=True)
class PLGCGan(PriorRecipe):
    """Fit a generator of images of a given class, without an image of any of these classes (Sec. 3.2 and 3.3).

    The target scores every public image; each class takes those that score highest as its own. A conditional GAN is
    trained on them, and its generator is also held to images that the target assigns to the class. `standard` has the
    published networks and settings, `quick` lighter ones that two cores can train and that no paper reports.

    Attributes:
        profile: `quick` or `standard`.
        top_n: Public images per class; None takes 30, or as many as the public images offer each class if that is more.
        steps: Critic updates; None takes 150,000, or what `quick` needs at that size.
        batch_size: Images per step.
        lr: Adam's learning rate for both networks; None takes 2e-4, or 4e-4 for `quick`.
        margin_weight: Weight of the margin on the target in the generator's loss (alpha).
        flip: Share of the images that the target is shown mirrored; None takes the published 0.5, and 0 for `quick`,
            because it is wrong for digits, letters and most medical pictures.
        precision: None takes single precision, or for `quick` bfloat16 where the hardware has it.

    Raises:
        ConfigError: A number is out of range, or the images are not of 32, 64 or 128 pixels.
    """

    paper: ClassVar = Paper(
        title="Pseudo Label-Guided Model Inversion Attack via Conditional Generative Adversarial Network",
        authors="Yuan et al.",
        venue="AAAI 2023",
        url="https://arxiv.org/abs/2302.09814",
    )
    smoke: ClassVar = {"profile": "quick", "steps": 2, "batch_size": 4}
    needs_target: ClassVar = True
    deviations: ClassVar = (
        "The generator ends in a sigmoid; the published one ends in tanh, although everything after it expects [0, 1].",
        "The generator's update reuses the generated images of the last critic update before it; the published code "
        "draws new ones and updates the generator first.",
        "The images per class grow when there are fewer classes than the 1000 that 30 images were chosen for.",
        "Contrast is stretched about the mean of each image.",
        "The weights of the generator are averaged.",
        "`quick` has plain 4x4 convolutions, one critic update per generator update, distorts what the critic sees, "
        "and shows the target no mirrored images.",
    )

    profile: Literal["quick", "standard"] = "standard"
    top_n: int | None = None
    steps: int | None = None
    batch_size: int = 64
    lr: float | None = None
    margin_weight: float = 0.2
    flip: float | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        require_finite(self)
        if any(number is not None and number <= 0 for number in (self.top_n, self.steps, self.batch_size, self.lr)):
            raise ConfigError(
                f"expected top_n, steps, batch_size and lr above 0, got {self}; correct the settings of plg-cgan"
            )
        if self.margin_weight < 0 or not 0 <= (self.flip or 0) <= 1:
            raise ConfigError(
                f"expected margin_weight >= 0 and 0 <= flip <= 1, got {self.margin_weight}, {self.flip}; correct them"
            )

    def fit(
        self,
        public: Dataset,
        target: WhiteBoxTarget | None,
        seed: int,
        device: str,
        on_step: Progress,
        checkpoint: Path | None = None,
    ) -> dict[str, Tensor]:
        if target is None:
            raise ConfigError("expected a target that labels the public images, got none; fit plg-cgan in an attack")
        with seeded("cpu", seed, "networks"):
            networks = self._networks(public.size, public.channels, target.num_classes)
        labelled, rows = self._labelled(public, target, device)
        settings = self._settings(labelled, target)
        fitted = gan.fit(networks, labelled, settings, seed=seed, device=device, on_step=on_step, checkpoint=checkpoint)
        return packed(generator=fitted.generator) | {"reuse": reuse(rows)}

    def restore(self, weights: Mapping[str, Tensor], size: int, channels: int, device: str) -> ConditionalPrior:
        classes = len(weights["generator.blocks.0." + ("norm" if self.profile == "quick" else "first") + ".scale"])
        networks = self._networks(size, channels, classes)
        unpack(weights, device, generator=networks.generator)
        return _PLGPrior(hastened(networks, critic=False))

    def found(self, weights: Mapping[str, Tensor]) -> dict[str, object]:
        """Share of the training images that stand for more than one class, counted from the second class on."""
        return {"reused_images": round(float(weights["reuse"]), 4)}

    def describe(self, size: int, channels: int) -> dict[str, object]:
        with torch.device("meta"):
            one, two = (count_weights(self._networks(size, channels, classes).generator) for classes in (1, 2))
        return {
            "profile": self.profile,
            "recipe": "light, not published" if self.profile == "quick" else "published, with an averaged generator",
            "objective": ConditionalHinge.name,
            "top_n": self.top_n or f"{FEWEST} or more",
            "steps": self.planned_steps(0, size, channels),
            "batch_size": self.batch_size,
            "flip": self._flip,
            "size": size,
            "channels": channels,
            "generator_parameters": 2 * one - two,
            "generator_parameters_per_class": two - one,
            "paper": str(self.paper),
        }

    def planned_steps(self, images: int, size: int, channels: int) -> int:
        del images, channels
        return self.steps or (quick_steps(size) if self.profile == "quick" else STEPS)

    def shortened(self, steps: int) -> "PLGCGan":
        return replace(self, steps=steps)

    @property
    def _flip(self) -> float:
        return self.flip if self.flip is not None else 0.0 if self.profile == "quick" else 0.5

    def _networks(self, size: int, channels: int, classes: int) -> Networks:
        if self.profile == "standard":
            return published_conditional(size, channels, classes)
        return light_conditional(size, channels, classes, width=32 if size == 32 else 48)

    def _labelled(self, public: Dataset, target: WhiteBoxTarget, device: str) -> tuple[Dataset, Tensor]:
        """The public images that every class of the target took, under these classes, and their rows."""
        parts = torch.arange(len(public)).split(ASKED)
        scores = torch.cat([target.scores(public.images(part, device)).cpu() for part in parts])
        count = self.top_n or max(FEWEST, len(public) // target.num_classes)
        rows, labels = top_n(scores, count)
        names = tuple(str(label) for label in range(target.num_classes))
        taken = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
        chosen = replace(public.select(rows), labels=labels, classes=names)
        return replace(chosen, fingerprint=f"{public.fingerprint}/{taken}"), rows

    def _settings(self, labelled: Dataset, target: WhiteBoxTarget) -> gan.GanSettings:
        quick = self.profile == "quick"
        objective = ConditionalHinge(
            logits=target.logits,
            fingerprint=labelled.fingerprint,
            view=Chain((RandomCrop((0.8, 1.0), flip=self._flip), Jitter(share=0.5), Rotation(5.0))),
            margin_weight=self.margin_weight,
            critic_steps=1 if quick else 5,
        )
        return gan.GanSettings(
            objective=objective,
            steps=self.planned_steps(len(labelled), labelled.size, labelled.channels),
            batch_size=self.batch_size,
            lr=self.lr or (4e-4 if quick else 2e-4),
            betas=(0.0, 0.9),
            average=0.995 if quick else 0.999,
            dither=1 / 256,
            shift=0.1 if quick else 0.0,
            brightness=0.2 if quick else 0.0,
            precision=self.precision or ("auto" if quick else "32"),
        )


class _AnyClass(LatentSpace):
    """The generator without a wish: standard normal vectors, the last number of which picks the class at random."""

    def __init__(self, networks: Networks) -> None:
        self.width = networks.latent + 1
        self._generator, self._classes = networks.generator, networks.classes

    def draw(self, noise: Float[Tensor, "b width"]) -> Latents:
        return noise

    def decode(self, latents: Latents) -> Images:
        share = torch.special.ndtr(latents[:, -1].detach())  # uniform in [0, 1]
        return self._generator(latents[:, :-1], (share * self._classes).long().clamp(max=self._classes - 1))

    def project(self, latents: Latents) -> Latents:
        return latents


class _PLGPrior(ConditionalPrior):
    """The averaged generator, frozen."""

    def __init__(self, networks: Networks) -> None:
        self.z = _AnyClass(networks)
        self._generator = networks.generator

    def decode_as(self, latents: Latents, labels: Labels) -> Images:
        """Images of the wished classes; the last number of a latent plays no part."""
        return self._generator(latents[:, :-1], labels)
