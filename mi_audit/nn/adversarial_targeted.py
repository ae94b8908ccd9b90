"""Objectives of generators that are fitted to a target: its answers take part in the loss of one of the networks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.core.types import Images, Labels, Logits, PerSample, Scalar, Scores
from mi_audit.nn.adversarial import Adversarial, Judge, Round
from mi_audit.nn.objectives import max_margin
from mi_audit.nn.views import View


@dataclass(frozen=True, kw_only=True)
class KPlusOne(Adversarial):
    """A critic that tells the target's classes apart, and generated images from all of them (Salimans et al., 2016).

    The target labels public images before they are distorted, and the critic learns to name them distorted.
    The critic returns features and K logits; with `s = logsumexp(logits)` an image is real with probability
    `sigmoid(s)`, as if a further class, generated, had the logit 0. The generator matches the mean features of public
    images, and makes images that the critic is sure about (KEDMI, Chen et al., ICCV 2021, Sec. 3.2).

    Attributes:
        soft_labels: The target's probabilities for public images, given the images and their rows.
        fingerprint: Of what answers; keeps the checkpoints of two targets apart.
        entropy_weight: Weight of the mean entropy of the critic's answer to a generated image; the published 1e-4 is
            for the sum over a batch of 64.
        adversarial_weight: Weight of the non-saturating loss for the generator, which the published objective lacks.
    """

    name: ClassVar = "K+1 classes with feature matching"
    real_batches: ClassVar = 3

    soft_labels: Callable[[Images, Labels], Scores] = field(repr=False, compare=False)
    fingerprint: str
    critic_steps: int = 5
    entropy_weight: float = 64e-4
    adversarial_weight: float = 0.0

    def critic_objective(self, judge: Judge, round: Round) -> Scalar:
        soft = self.soft_labels(round.real, round.rows)
        _, logits = judge(round.seen_real)
        taught = -(soft * logits.float().log_softmax(dim=1)).sum(dim=1).mean()
        _, real = judge(round.more_real[0])
        _, made = judge(round.seen_made.detach())
        return taught + self.critic_loss(realness(real), realness(made)) / 2

    def critic_loss(self, real: PerSample, fake: PerSample) -> Scalar:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator_objective(self, judge: Judge, round: Round) -> Scalar:
        features, logits = judge(round.seen_made)
        wanted, _ = judge(round.more_real[1])
        matching = (features.float().mean(dim=0) - wanted.float().mean(dim=0)).abs().mean()
        loss = matching + self.entropy_weight * entropy(logits).mean()
        if self.adversarial_weight:
            loss = loss + self.adversarial_weight * self.generator_loss(realness(logits))
        return loss

    def generator_loss(self, fake: PerSample) -> Scalar:
        return F.softplus(-fake).mean()

    def penalty(self, critic: nn.Module, real: Images, fake: Images, mix: PerSample, step: int) -> Scalar | None:
        del critic, real, fake, mix, step
        return None


@dataclass(frozen=True, kw_only=True)
class ConditionalHinge(Adversarial):
    """The hinge loss of a critic that knows the labels, and the target's margin for the generator (PLG-MI, eq. 5).

    The critic sees generated images as they are; the target sees one random view of each.

    Attributes:
        logits: The target, differentiable.
        fingerprint: Of the target; keeps the checkpoints of two targets apart.
        view: What the target sees of a generated image.
        margin_weight: Weight alpha of the margin loss.
    """

    name: ClassVar = "conditional hinge with the target's margin"

    logits: Callable[[Images], Logits] = field(repr=False, compare=False)
    fingerprint: str
    view: View
    critic_steps: int = 5
    margin_weight: float = 0.2

    def critic_objective(self, judge: Judge, round: Round) -> Scalar:
        real = judge(round.seen_real, round.labels).float()
        return self.critic_loss(real, judge(round.seen_made.detach(), round.asked).float())

    def critic_loss(self, real: PerSample, fake: PerSample) -> Scalar:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator_objective(self, judge: Judge, round: Round) -> Scalar:
        shown = self.view(round.made, round.streams, 0)
        margin = max_margin(self.logits(shown), round.asked).mean()
        return self.generator_loss(judge(round.seen_made, round.asked).float()) + self.margin_weight * margin

    def generator_loss(self, fake: PerSample) -> Scalar:
        return -fake.mean()

    def penalty(self, critic: nn.Module, real: Images, fake: Images, mix: PerSample, step: int) -> Scalar | None:
        del critic, real, fake, mix, step
        return None


def realness(logits: Logits) -> PerSample:
    """`logsumexp(logits)`: the log odds of being real, for a critic whose further class, generated, has the logit 0."""
    return torch.logsumexp(logits.float(), dim=1)


def entropy(logits: Logits) -> PerSample:
    """The entropy of the softmax of each row, in nats."""
    logs = logits.float().log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)
