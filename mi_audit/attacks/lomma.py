"""LOMMA: GMI's or KEDMI's search with a loss on raw logits, over the target and students distilled from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import AssistedPrior, CriticPrior, Surrogates
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Features, Images, Labels, Latents, Logits, PerSample
from mi_audit.nn.descent import Descent
from mi_audit.nn.gaussian_latent import GaussianLatent
from mi_audit.nn.objectives import aimed, cross_entropy
from mi_audit.nn.optimisers import Adam, Nesterov

CA_CONFIDENCE = math.exp(-1 / 8)  # 0.8825
SIGMA = math.exp(0.5)  # deviation at which KEDMI's Gaussians start: a log-variance of 1


@dataclass(frozen=True, kw_only=True)
class LOMMA(Attack[WhiteBoxTarget, AssistedPrior[CriticPrior]]):
    """Minimise `identity_weight * (mean over networks of -logit + feature_weight * distance) - critic` (Sec. 4).

    The logit of the class never saturates as cross-entropy does, and the mean squared distance of the target's features
    from those of public images, `mean_d (phi(x)_d - mu_d)^2`, keeps it from growing without end. The students share the
    class with the target but not its overfitting. Two of the paper's variants are `augment=False` (its L_logit) and
    `loss="cross-entropy"` (its L_aug).

    Attributes:
        on: The search: `gmi` moves latents, `kedmi` moves one Gaussian per class on a GAN that knows the target.
        steps: Gradient steps per latent or Gaussian.
        restarts: Images per class: latents of their own for `gmi`, final draws from the Gaussian for `kedmi`.
        lr: Step size of Nesterov (`gmi`), for a loss that is a mean over `reference_batch` images, or Adam (`kedmi`).
        momentum: Momentum of the Nesterov update.
        clip: Half the side of the box of latents: after every step for `gmi`, before every decoding for `kedmi`.
        loss: `logit`, with the feature distance, or without it `cross-entropy` or `confidence`, which aims at
            `confidence` instead of the largest: for models tuned by CA.
        confidence: What that aims at; CA with its published power of 8 tunes to `exp(-1 / 8)`.
        augment: Average the loss over the target and all students; otherwise it is the target's alone.
        students_only: Average it over the students alone: a trapdoor of the target is not in them. The feature distance
            stays the target's.
        identity_weight: Weight of the loss above.
        feature_weight: Weight of the feature distance within it (lambda).
        feature_draw: Measure the distance from one random draw per class, with the mean and spread of public features.
        critic_weight: Weight of the critic's score; 0 switches the prior loss off.
        reference_batch: Classes that shared a batch, and so divided the gradient, when the method was published.

    Raises:
        ConfigError: A count is below one, or a step size, weight, box or confidence is out of range, or only students
            are wanted and none.
    """

    paper: ClassVar = Paper(
        title="Re-thinking Model Inversion Attacks Against Deep Neural Networks",
        authors="Nguyen et al.",
        venue="CVPR 2023",
        url="https://arxiv.org/abs/2304.01669",
    )
    smoke: ClassVar = {"steps": 30, "restarts": 2}
    quick: ClassVar = {"steps": 300}
    prior: ClassVar = "gmi-gan"
    cost: ClassVar = (
        "2400 steps through generator, critic, target and 3 students; on KEDMI 480; students once per target"
    )
    deviations: ClassVar = (
        "The public features are represented by their mean, as in the published code; the paper draws from a Gaussian, "
        "which the code computes and then overwrites. `feature_draw` is the paper's way.",
        "The published loss is a mean over a batch of 60, which makes the step size depend on the batch; here each row "
        "is divided by a fixed 60, so that results do not depend on the batch size.",
        "The students start from random weights, because nothing is downloaded that was not named; the published ones "
        "start from ImageNet: set `pretrained` of the prior lomma-students.",
        "The target is asked once about every public image, not again in every epoch of every student: the answers are "
        "the same.",
        "The students learn with Nesterov's momentum, the only one of the trainer here; the published ones with the "
        "plain kind.",
        "`confidence` and `students_only` are not published: they are for an attacker who knows CA or Trap-MID.",
        "On KEDMI the critic scores every image alone, beside public images that it remembers; the published critic "
        "compares the reconstructions of a batch, so that they depend on each other.",
    )

    on: Literal["gmi", "kedmi"] = "gmi"
    steps: int = 2400
    restarts: int = 5
    lr: float = 0.02
    momentum: float = 0.9
    clip: float = 1.0
    loss: Literal["logit", "cross-entropy", "confidence"] = "logit"
    confidence: float = CA_CONFIDENCE
    augment: bool = True
    students_only: bool = False
    identity_weight: float = 100.0
    feature_weight: float = 1.0
    feature_draw: bool = False
    critic_weight: float = 1.0
    reference_batch: int = 60

    def __post_init__(self) -> None:
        require_finite(self)
        if min(self.steps, self.restarts, self.reference_batch) < 1:
            raise ConfigError(
                f"expected steps, restarts and reference_batch >= 1, "
                f"got {self.steps}, {self.restarts}, {self.reference_batch}; raise them"
            )
        weights = (self.identity_weight, self.feature_weight, self.critic_weight)
        if min(self.lr, self.clip) <= 0 or min(self.momentum, *weights) < 0:
            raise ConfigError(
                f"expected lr and clip > 0, momentum and weights >= 0, got lr={self.lr}, clip={self.clip}, "
                f"momentum={self.momentum}, weights={', '.join(map(str, weights))}; correct them"
            )

        if not 0 < self.confidence < 1:
            raise ConfigError(f"expected 0 < confidence < 1, got {self.confidence}; CA tunes to exp(-1 / power)")
        if self.students_only and not self.augment:
            raise ConfigError("expected students with students_only, got augment=false; remove one of them")

    @property
    def adaptive_to(self) -> tuple[str, ...]:
        """Students distilled from the answers do not feel a defense that spoils the target's gradients.

        They have stock heads and skip connections, and alone also none of the target's trapdoors. Logits never
        saturate, whatever NegLS does; the aimed confidence is where CA puts the images that it knows.
        """
        if not self.augment or self.loss == "cross-entropy":
            return ()
        stock = ("loft", "rolss", "ssf", "tts", "ca" if self.loss == "confidence" else "negls")
        return (*stock, "trap-mid") if self.students_only else stock

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.prior if self.on == "gmi" else "kedmi-gan", "lomma-students")

    @property
    def sample_steps(self) -> int:
        return self.steps * (self.restarts if self.on == "gmi" else 1)

    def run(
        self, target: WhiteBoxTarget, prior: AssistedPrior[CriticPrior], classes: Labels, run: Run
    ) -> Reconstructions:
        labels = classes.repeat_interleave(self.restarts)
        streams = run.streams(labels, torch.arange(self.restarts, device=classes.device).repeat(len(classes)))
        descent, space = self._descent(target, prior, run, classes.device), prior.z
        if self.on == "gmi":
            found = descent.search(space.draw(streams.normal("start", space.width)), labels, streams, run)
            latents = found.latents
        else:
            gaussian = GaussianLatent(space.width, bound=self.clip)
            descent = replace(descent, optimiser=Adam(self.lr), sample=gaussian.sample, constraint=lambda wide: wide)
            start = gaussian.start(space.draw(torch.zeros(len(classes), space.width, device=classes.device)), SIGMA)
            found = descent.search(start, classes, run.streams(classes, torch.zeros_like(classes)), run)
            latents = gaussian.sample(found.latents.repeat_interleave(self.restarts, dim=0), streams, self.steps)

        with torch.no_grad():
            images = run.map(space.decode, latents).float()
            scores = run.map(target.scores, images)
        run.work.update(generator_forward=len(images), target_forward=len(images))
        return Reconstructions(images, labels, scores.gather(1, labels[:, None]).squeeze(1), (found.curve,))

    def _descent(
        self, target: WhiteBoxTarget, prior: AssistedPrior[CriticPrior], run: Run, device: torch.device
    ) -> Descent:
        """The search of GMI; that of KEDMI differs in the latents and the optimiser."""
        students, centres = self._students(prior), self._centres(target.num_classes, prior.surrogates, run, device)

        def decode(latents: Latents, labels: Labels) -> Images:
            del labels
            return prior.z.decode(latents)

        def identity(images: Images, labels: Labels) -> PerSample:
            logits, features = target.logits_and_features(images)
            answers = [*(() if self.students_only else (logits,)), *(student(images) for student in students)]
            mean = torch.stack([self._loss(own, labels) for own in answers]).mean(0)
            if self.loss != "logit":
                return mean
            return mean + self.feature_weight * feature_distance(features, centres[labels])

        return Descent(
            stage="descend",
            steps=self.steps,
            decode=decode,
            identity=identity,
            realism=(lambda images: self.critic_weight * prior.prior.realism(images)) if self.critic_weight else None,
            students=len(students),
            identity_weight=self.identity_weight,
            reference_batch=self.reference_batch,
            optimiser=Nesterov(self.lr, self.momentum),
            constraint=lambda latents: latents.clamp(-self.clip, self.clip),
        )

    def _loss(self, logits: Logits, labels: Labels) -> PerSample:
        if self.loss == "confidence":
            return aimed(logits, labels, self.confidence)
        return cross_entropy(logits, labels) if self.loss == "cross-entropy" else logit_loss(logits, labels)

    def _students(self, prior: AssistedPrior[CriticPrior]) -> tuple[Callable[[Images], Logits], ...]:
        return prior.surrogates.networks if self.augment else ()

    def _centres(
        self, classes: int, surrogates: Surrogates, run: Run, device: torch.device
    ) -> Float[Tensor, "classes d"]:
        """What the features of each class are held near."""
        mean = surrogates.feature_mean.expand(classes, -1)
        if not self.feature_draw:
            return mean
        every = torch.arange(classes, device=device)
        noise = run.streams(every, torch.zeros_like(every)).normal("features", mean.shape[1])
        return mean + surrogates.feature_std * noise


def logit_loss(logits: Logits, labels: Labels) -> PerSample:
    """`-logits[label]`, per image, in single precision: its gradient does not vanish once the class is sure."""
    return -logits.float().gather(1, labels[:, None]).squeeze(1)


def feature_distance(features: Features, centres: Features) -> PerSample:
    """Mean squared difference over the dimensions, per image."""
    return (features.float() - centres).square().mean(dim=1)
