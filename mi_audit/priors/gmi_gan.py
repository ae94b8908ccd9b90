"""GMI's prior: an unconditional generator of public images and the critic it was trained against."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import CriticPrior, PriorRecipe, Progress
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, PerSample
from mi_audit.nn.adversarial import NonSaturatingR1, WassersteinGP
from mi_audit.nn.gan import Networks, count_weights, hastened, light, packed, published, quick_steps, unpack
from mi_audit.nn.noise_space import NoisePrior
from mi_audit.nn.precision import Precision
from mi_audit.train import gan
from mi_audit.train.seeding import seeded

EPOCHS = 120  # over the public images, in the released settings of KEDMI and LOMMA; GMI's own say 280


@dataclass(frozen=True, kw_only=True)
class GMIGan(PriorRecipe):
    """Fit the generator of GMI to public images: WGAN-GP as published, or a lighter one that two cores can train.

    `standard` is the published network and objective with an averaged generator. `quick` has 4x4 kernels, the
    non-saturating loss with lazy R1, and shows real and generated images to the critic through the same distortions;
    no paper reports it. Neither knows classes or asks the target.

    Attributes:
        profile: `quick` or `standard`.
        steps: Critic updates; None takes 120 epochs of the public images, or what `quick` needs at that size.
        batch_size: Public images per step.
        lr: Adam's learning rate for both networks; None takes 2e-4, or 4e-4 for `quick`.
        flips: Mirror every second public image; right for faces, wrong for digits, letters and most medical pictures.
        precision: None takes single precision, or for `quick` bfloat16 where the hardware has it.

    Raises:
        ConfigError: A number is not positive, or the images are not of 32, 64 or 128 pixels.
    """

    paper: ClassVar = Paper(
        title="The Secret Revealer: Generative Model-Inversion Attacks Against Deep Neural Networks",
        authors="Zhang et al.",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/1911.07135",
    )
    smoke: ClassVar = {"profile": "quick", "steps": 2, "batch_size": 4}

    profile: Literal["quick", "standard"] = "standard"
    steps: int | None = None
    batch_size: int = 64
    lr: float | None = None
    flips: bool = False
    precision: Precision | None = None

    def __post_init__(self) -> None:
        require_finite(self)
        if any(number is not None and number <= 0 for number in (self.steps, self.batch_size, self.lr)):
            raise ConfigError(f"expected steps, batch_size and lr above 0, got {self}; correct the settings of gmi-gan")

    def fit(
        self,
        public: Dataset,
        target: WhiteBoxTarget | None,
        seed: int,
        device: str,
        on_step: Progress,
        checkpoint: Path | None = None,
    ) -> dict[str, Tensor]:
        del target
        with seeded("cpu", seed, "networks"):
            networks = self._networks(public.size, public.channels)
        fitted = gan.fit(
            networks, public, self._settings(public), seed=seed, device=device, on_step=on_step, checkpoint=checkpoint
        )
        return packed(generator=fitted.generator, critic=fitted.critic)

    def restore(self, weights: Mapping[str, Tensor], size: int, channels: int, device: str) -> CriticPrior:
        networks = self._networks(size, channels)
        unpack(weights, device, generator=networks.generator, critic=networks.critic)
        return _GMIPrior(hastened(networks))

    def describe(self, size: int, channels: int) -> dict[str, object]:
        with torch.device("meta"):
            networks = self._networks(size, channels)
        objective = NonSaturatingR1.name if self.profile == "quick" else WassersteinGP.name
        steps = self.steps or (quick_steps(size) if self.profile == "quick" else f"{EPOCHS} epochs")
        return {
            "profile": self.profile,
            "recipe": "light, not published" if self.profile == "quick" else "published, with an averaged generator",
            "objective": objective,
            "steps": steps,
            "batch_size": self.batch_size,
            "flips": self.flips,
            "size": size,
            "channels": channels,
            "latent": networks.latent,
            "generator_parameters": count_weights(networks.generator),
            "critic_parameters": count_weights(networks.critic),
            "paper": str(self.paper),
        }

    def planned_steps(self, images: int, size: int, channels: int) -> int:
        del channels
        if self.profile == "quick":
            return self.steps or quick_steps(size)
        return self.steps or EPOCHS * max(1, images // self.batch_size)

    def shortened(self, steps: int) -> "GMIGan":
        return replace(self, steps=steps)

    def _networks(self, size: int, channels: int) -> Networks:
        if self.profile == "standard":
            return published(size, channels)
        return light(size, channels, width=32 if size == 32 else 48)

    def _settings(self, public: Dataset) -> gan.GanSettings:
        steps = self.planned_steps(len(public), public.size, public.channels)
        if self.profile == "standard":
            return gan.GanSettings(
                objective=WassersteinGP(),
                steps=steps,
                batch_size=self.batch_size,
                lr=self.lr or 2e-4,
                flips=self.flips,
                precision=self.precision or "32",
            )
        return gan.GanSettings(
            objective=NonSaturatingR1(),
            steps=steps,
            batch_size=self.batch_size,
            lr=self.lr or 4e-4,
            betas=(0.0, 0.99),
            average=0.995,
            flips=self.flips,
            shift=0.1,
            brightness=0.2,
            precision=self.precision or "auto",
        )


class _GMIPrior(NoisePrior):
    """The averaged generator and the critic, frozen."""

    def realism(self, images: Images) -> PerSample:
        return self.critic(images)
