"""What a generator and its critic minimise. Scores grow with realism; every loss is a mean over the batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.core.random import Streams
from mi_audit.core.types import Images, Labels, Latents, PerSample, Scalar

Judge = Callable[..., Any]  # the critic on images and, when it knows classes, their labels


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """What one step of the training loop lays before an objective; `seen` is as the critic sees it, distorted.

    Attributes:
        step: Number of the step.
        rows: Where the public images of the step lie in the public set.
        labels: Their labels in the public set.
        real: These images, not distorted.
        seen_real: The same.
        more_real: Further batches of public images, drawn independently.
        made: Generated images; they carry a gradient when the generator's update is due.
        seen_made: The same.
        asked: Class that each generated image was asked for; zeros when the generator knows no classes.
        streams: Random numbers of each generated image.
    """

    step: int
    rows: Labels
    labels: Labels
    real: Images
    seen_real: Images
    more_real: tuple[Images, ...]
    made: Images
    seen_made: Images
    asked: Labels
    streams: Streams


class Adversarial(ABC):
    """An objective of the two networks.

    Attributes:
        critic_steps: Critic updates per generator update.
        real_batches: Independent batches of public images that a step needs.
    """

    name: ClassVar[str]
    real_batches: ClassVar[int] = 1
    critic_steps: int

    def critic_objective(self, judge: Judge, round: Round) -> Scalar:
        """The critic's loss without its penalty; most objectives need the scores of the two kinds of images only."""
        return self.critic_loss(judge(round.seen_real).float(), judge(round.seen_made.detach()).float())

    def generator_objective(self, judge: Judge, round: Round) -> Scalar:
        """The generator's loss; most objectives need the scores of its images only."""
        return self.generator_loss(judge(round.seen_made).float())

    @abstractmethod
    def critic_loss(self, real: PerSample, fake: PerSample) -> Scalar:
        """The critic's loss without its penalty, from the scores of real and generated images."""

    @abstractmethod
    def generator_loss(self, fake: PerSample) -> Scalar:
        """The generator's loss, from the scores of its images."""

    @abstractmethod
    def penalty(self, critic: nn.Module, real: Images, fake: Images, mix: PerSample, step: int) -> Scalar | None:
        """The critic's gradient penalty at `step`, or None when none is due. `mix` is uniform in [0, 1)."""

    def generator_penalty(self, generator: nn.Module, latents: Latents, step: int) -> Scalar | None:
        """The generator's own penalty at `step`, computed in single precision, or None when none is due."""
        del generator, latents, step
        return None


@dataclass(frozen=True, kw_only=True)
class WassersteinGP(Adversarial):
    """WGAN-GP (Gulrajani et al., NeurIPS 2017): a critic of slope one between real and generated images.

    Attributes:
        weight: Weight of the gradient penalty, lambda.
    """

    name: ClassVar = "WGAN-GP"

    critic_steps: int = 5
    weight: float = 10.0

    def critic_loss(self, real: PerSample, fake: PerSample) -> Scalar:
        return fake.mean() - real.mean()

    def generator_loss(self, fake: PerSample) -> Scalar:
        return -fake.mean()

    def penalty(self, critic: nn.Module, real: Images, fake: Images, mix: PerSample, step: int) -> Scalar | None:
        del step
        between = torch.lerp(real, fake, mix[:, None, None, None])
        return self.weight * (slopes(critic, between).norm(dim=1) - 1).square().mean()


@dataclass(frozen=True, kw_only=True)
class NonSaturatingR1(Adversarial):
    """The non-saturating loss with a lazy R1 penalty (Mescheder et al., ICML 2018; Karras et al., CVPR 2020).

    Attributes:
        gamma: Weight of the penalty: `gamma / 2` times the mean squared slope at real images.
        every: Steps between two penalties; each is multiplied by it, so that the average weight stays.
        images: Real images per penalty.
    """

    name: ClassVar = "non-saturating with lazy R1"

    critic_steps: int = 1
    gamma: float = 1.0
    every: int = 16
    images: int = 16

    def critic_loss(self, real: PerSample, fake: PerSample) -> Scalar:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator_loss(self, fake: PerSample) -> Scalar:
        return F.softplus(-fake).mean()

    def penalty(self, critic: nn.Module, real: Images, fake: Images, mix: PerSample, step: int) -> Scalar | None:
        del fake, mix
        if step % self.every:
            return None
        return self.every * self.gamma / 2 * slopes(critic, real[: self.images]).square().sum(dim=1).mean()


def slopes(critic: nn.Module, images: Images) -> Float[Tensor, "b pixels"]:
    """The gradient of each score in its own image, differentiable in the critic's weights."""
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return gradient.flatten(1)
