"""KEDMI's prior: a generator whose critic learned from the target to tell its classes apart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import CriticPrior, PriorRecipe, Progress
from mi_audit.core.target import Access, WhiteBoxTarget
from mi_audit.core.types import Images, Labels, PerSample, Scores
from mi_audit.nn.adversarial_targeted import KPlusOne, realness
from mi_audit.nn.gan import Networks, count_weights, hastened, light, packed, published, quick_steps, unpack
from mi_audit.nn.gan_k_plus_one import COMPARED, KPlusOneCritic, light_critic, published_critic
from mi_audit.nn.noise_space import NoisePrior
from mi_audit.nn.precision import Precision
from mi_audit.store.weights import hash_weights
from mi_audit.train import gan
from mi_audit.train.seeding import seeded, stream

EPOCHS = 120  # over the public images
ASKED = 256  # public images the target is asked about at once
SoftLabels = Callable[[Images, Labels], Scores]


@dataclass(frozen=True, kw_only=True)
class KEDMIGan(PriorRecipe):
    """Fit a generator to public images, and a critic that also names the target's classes in them (Sec. 3.2).

    The critic learns the target's soft labels of public images, and to tell public from generated images; the
    generator matches the critic's features of public images. `standard` has the published networks and settings with
    an averaged generator, `quick` lighter ones that two cores can train and that no paper reports.

    Attributes:
        profile: `quick` or `standard`.
        steps: Critic updates; None takes 120 epochs of the public images, or what `quick` needs at that size.
        batch_size: Public images per batch; a step takes three batches.
        lr: Adam's learning rate for both networks; None takes 2e-4, or 4e-4 for `quick`.
        target_mode: `eval` asks the target once about every public image; `train`, as in the published code, asks a
            copy again in every step, with dropout active and batch norms that see the batch.
        flips: Mirror every second public image; right for faces, wrong for digits, letters and most medical pictures.
        precision: None takes single precision, or for `quick` bfloat16 where the hardware has it.

    Raises:
        ConfigError: A number is not positive, or the images are not of 32, 64 or 128 pixels.
    """

    paper: ClassVar = Paper(
        title="Knowledge-Enriched Distributional Model Inversion Attacks",
        authors="Chen et al.",
        venue="ICCV 2021",
        url="https://arxiv.org/abs/2010.04092",
    )
    smoke: ClassVar = {"profile": "quick", "steps": 2, "batch_size": 4}
    version: ClassVar = 2
    needs_target: ClassVar = True
    deviations: ClassVar = (
        "The target labels the public images in eval mode; the published code leaves it in train mode while the prior "
        "is trained (`target_mode='train'`), though not during the attack.",
        "In eval mode the target is asked once about every public image as it is stored, not in every step.",
        "Outside training, the critic compares an image with 63 public ones that it remembers; the published attack "
        "compares the reconstructions of a batch, so that they depend on each other.",
        "The published projection starts at N(0, 1), which makes every comparison zero in single precision, and its "
        "gradient, too; `standard` keeps this, `quick` starts it smaller.",
        "`quick` adds the non-saturating loss to the generator's and updates it after every step of the critic.",
        "The weights of the generator are averaged.",
    )

    profile: Literal["quick", "standard"] = "standard"
    steps: int | None = None
    batch_size: int = 64
    lr: float | None = None
    target_mode: Literal["eval", "train"] = "eval"
    flips: bool = False
    precision: Precision | None = None

    def __post_init__(self) -> None:
        require_finite(self)
        if any(number is not None and number <= 0 for number in (self.steps, self.batch_size, self.lr)):
            raise ConfigError(
                f"expected steps, batch_size and lr above 0, got {self}; correct the settings of kedmi-gan"
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
            raise ConfigError("expected a target that labels the public images, got none; fit kedmi-gan in an attack")
        with seeded("cpu", seed, "networks"):
            networks = self._networks(public.size, public.channels, target.num_classes)
        labels, fingerprint = self._labels(public, target, seed, device)
        settings = self._settings(public, labels, fingerprint)
        fitted = gan.fit(networks, public, settings, seed=seed, device=device, on_step=on_step, checkpoint=checkpoint)
        order = torch.randperm(len(public), generator=stream(seed, "compared"))[:COMPARED]
        assert isinstance(fitted.critic, KPlusOneCritic)
        fitted.critic.remember(public.images(order, device))
        return packed(generator=fitted.generator, critic=fitted.critic)

    def restore(self, weights: Mapping[str, Tensor], size: int, channels: int, device: str) -> CriticPrior:
        networks = self._networks(size, channels, len(weights["critic.head.bias"]))
        unpack(weights, device, generator=networks.generator, critic=networks.critic)
        return _KEDMIPrior(hastened(networks))

    def describe(self, size: int, channels: int) -> dict[str, object]:
        with torch.device("meta"):
            networks = self._networks(size, channels, 1)
        return {
            "profile": self.profile,
            "recipe": "light, not published" if self.profile == "quick" else "published, with an averaged generator",
            "objective": KPlusOne.name,
            "target": f"in {self.target_mode} mode",
            "steps": self.steps or (quick_steps(size) if self.profile == "quick" else f"{EPOCHS} epochs"),
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

    def shortened(self, steps: int) -> "KEDMIGan":
        return replace(self, steps=steps)

    def _networks(self, size: int, channels: int, classes: int) -> Networks:
        if self.profile == "standard":
            return published(size, channels)._replace(critic=published_critic(size, channels, classes))
        width = 32 if size == 32 else 48
        return light(size, channels, width)._replace(critic=light_critic(size, channels, classes, width))

    def _settings(self, public: Dataset, labels: SoftLabels, fingerprint: str) -> gan.GanSettings:
        steps, quick = self.planned_steps(len(public), public.size, public.channels), self.profile == "quick"
        objective = KPlusOne(soft_labels=labels, fingerprint=fingerprint)
        if quick:
            objective = replace(objective, critic_steps=1, adversarial_weight=1.0)
        return gan.GanSettings(
            objective=objective,
            steps=steps,
            batch_size=self.batch_size,
            lr=self.lr or (4e-4 if quick else 2e-4),
            betas=(0.0, 0.99) if quick else (0.5, 0.999),
            average=0.995 if quick else 0.999,
            flips=self.flips,
            shift=0.1 if quick else 0.0,
            brightness=0.2 if quick else 0.0,
            precision=self.precision or ("auto" if quick else "32"),
        )

    def _labels(self, public: Dataset, target: WhiteBoxTarget, seed: int, device: str) -> tuple[SoftLabels, str]:
        """The target's soft labels of public images, and a hash of what gives them."""
        if self.target_mode == "eval":
            rows = torch.arange(len(public))
            table = torch.cat([target.scores(public.images(part, device)) for part in rows.split(ASKED)])
            return lambda _images, rows: table[rows], hash_weights({"labels": table.cpu()})

        network: nn.Module = target.network().train()
        weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}

        @torch.no_grad()
        def ask(images: Images, rows: Labels) -> Scores:
            target.ledger.charge(Access.SCORE, len(images))
            with seeded(device, seed, "dropout", rows.tolist()):
                return network(images).float().softmax(dim=1)

        return ask, hash_weights(weights)


class _KEDMIPrior(NoisePrior):
    """The averaged generator and the critic, frozen."""

    def realism(self, images: Images) -> PerSample:
        """The logarithm of the probability of being real, `s - softplus(s)` with `s = logsumexp(logits)`."""
        _, logits = self.critic(images)
        return F.logsigmoid(realness(logits))
