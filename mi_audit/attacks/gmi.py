"""GMI: descend in the latent space of a GAN towards a class, held on the manifold by the GAN's own critic."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import CriticPrior
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.descent import Descent
from mi_audit.nn.objectives import cross_entropy
from mi_audit.nn.optimisers import Nesterov


@dataclass(frozen=True, kw_only=True)
class GMI(Attack[WhiteBoxTarget, CriticPrior]):
    """Minimise `identity_weight * cross-entropy - critic_weight * critic` over latents in a box (Sec. 3.2).

    Every restart starts at its own standard normal latent, and every restart is returned: nothing is selected.
    Standard normal numbers leave the box [-1, 1] one time in three, so after the first step a third of the
    coordinates lie on its edge; the published attack does this too, and its images stay close to the prior's average.

    Attributes:
        steps: Gradient steps per latent; the authors' code runs 1500 or 2400, depending on the script.
        restarts: Latents, and therefore images, per class.
        lr: Step size, for a loss that is a mean over `reference_batch` images.
        momentum: Momentum of the Nesterov update.
        clip: Half the side of the box the latents are clipped to after every step.
        identity_weight: Weight of the cross-entropy on the target (lambda_i).
        critic_weight: Weight of the critic's score; 0 switches the prior loss off.
        reference_batch: Classes that shared a batch, and so divided the gradient, when the method was published.

    Raises:
        ConfigError: A count is below one, or a step size, weight or box is out of range.
    """

    paper: ClassVar = Paper(
        title="The Secret Revealer: Generative Model-Inversion Attacks Against Deep Neural Networks",
        authors="Zhang et al.",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/1911.07135",
    )
    smoke: ClassVar = {"steps": 30, "restarts": 2}
    quick: ClassVar = {"steps": 300}
    prior: ClassVar = "gmi-gan"
    cost: ClassVar = "1500 steps through generator, critic and target"
    deviations: ClassVar = (
        "The published code picks the best of 5 restarts by the target's score, or counts a class as hit if any "
        "restart is; here all restarts are returned and averaged, as in the later papers that compare against GMI.",
        "The published loss is a mean over a batch of 60, which makes the step size depend on the batch; here each row "
        "is divided by a fixed 60, so that results do not depend on the batch size.",
    )

    steps: int = 1500
    restarts: int = 5
    lr: float = 0.02
    momentum: float = 0.9
    clip: float = 1.0
    identity_weight: float = 100.0
    critic_weight: float = 1.0
    reference_batch: int = 60

    def __post_init__(self) -> None:
        require_finite(self)
        if min(self.steps, self.restarts, self.reference_batch) < 1:
            raise ConfigError(
                f"expected steps, restarts and reference_batch >= 1, "
                f"got {self.steps}, {self.restarts}, {self.reference_batch}; raise them"
            )
        if min(self.lr, self.clip) <= 0 or min(self.momentum, self.identity_weight, self.critic_weight) < 0:
            raise ConfigError(
                f"expected lr and clip > 0, momentum and weights >= 0, got lr={self.lr}, clip={self.clip}, "
                f"momentum={self.momentum}, weights={self.identity_weight}, {self.critic_weight}; correct them"
            )

    @property
    def sample_steps(self) -> int:
        return self.restarts * self.steps

    def run(self, target: WhiteBoxTarget, prior: CriticPrior, classes: Labels, run: Run) -> Reconstructions:
        labels = classes.repeat_interleave(self.restarts)
        streams = run.streams(labels, torch.arange(self.restarts, device=classes.device).repeat(len(classes)))
        start = prior.z.draw(streams.normal("start", prior.z.width))
        found = self._descent(target, prior).search(start, labels, streams, run)

        with torch.no_grad():
            images = run.map(prior.z.decode, found.latents).float()
            scores = run.map(target.scores, images)
        run.work.update(generator_forward=len(images), target_forward=len(images))
        return Reconstructions(images, labels, scores.gather(1, labels[:, None]).squeeze(1), (found.curve,))

    def _descent(self, target: WhiteBoxTarget, prior: CriticPrior) -> Descent:
        def decode(latents: Latents, labels: Labels) -> Images:
            del labels
            return prior.z.decode(latents)

        def identity(images: Images, labels: Labels) -> PerSample:
            return cross_entropy(target.logits(images), labels)

        return Descent(
            stage="descend",
            steps=self.steps,
            decode=decode,
            identity=identity,
            realism=(lambda images: self.critic_weight * prior.realism(images)) if self.critic_weight else None,
            identity_weight=self.identity_weight,
            reference_batch=self.reference_batch,
            optimiser=Nesterov(self.lr, self.momentum),
            constraint=lambda latents: latents.clamp(-self.clip, self.clip),
        )
