"""KEDMI: fit a Gaussian over the latents of a target-specific GAN to a class, and draw the images from it."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

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
from mi_audit.nn.gaussian_latent import GaussianLatent
from mi_audit.nn.objectives import cross_entropy
from mi_audit.nn.optimisers import Adam


@dataclass(frozen=True, kw_only=True)
class KEDMI(Attack[WhiteBoxTarget, CriticPrior]):
    """Minimise `identity_weight * cross-entropy - critic_weight * log p(real)` over a Gaussian per class (Sec. 3.3).

    Every step decodes one fresh draw of each Gaussian. The images are draws of the Gaussians in the end; nothing is
    selected. With a critic of K+1 classes, `-log p(real)` is `softplus(s) - s`, `s = logsumexp(logits)`.

    Attributes:
        steps: Gradient steps per Gaussian; the authors' code runs 1500 or 2400, depending on the script.
        samples: Images drawn per class.
        lr: Adam step size, for the means and for the logarithms of the variance.
        log_variance: Logarithm of the variance at the start (rho); the mean starts at 0.
        clip: `pre` clips every draw to [-1, 1] before it is decoded, as the later papers do; `none` does not.
        identity_weight: Weight of the cross-entropy on the target (lambda_i).
        critic_weight: Weight of the critic's score; 0 switches the prior loss off.

    Raises:
        ConfigError: A count is below one, the step size is not positive, or a weight is negative.
    """

    paper: ClassVar = Paper(
        title="Knowledge-Enriched Distributional Model Inversion Attacks",
        authors="Chen et al.",
        venue="ICCV 2021",
        url="https://arxiv.org/abs/2010.04092",
    )
    smoke: ClassVar = {"steps": 60, "samples": 2, "lr": 0.1}
    quick: ClassVar = {"steps": 1500}
    prior: ClassVar = "kedmi-gan"
    cost: ClassVar = "480 steps through generator, critic and target (2400 per class, for 5 images); a prior per target"
    deviations: ClassVar = (
        "Draws are clipped to [-1, 1] before they are decoded, as in the code of LOMMA that later papers compare with; "
        "the original clips a copy after the step, which has no effect (`clip='none'`).",
        "The critic scores every image alone; the published one compares the images of a batch of 60 classes.",
    )

    steps: int = 2400
    samples: int = 5
    lr: float = 0.02
    log_variance: float = 1.0
    clip: Literal["pre", "none"] = "pre"
    identity_weight: float = 100.0
    critic_weight: float = 1.0

    def __post_init__(self) -> None:
        require_finite(self)
        if min(self.steps, self.samples) < 1:
            raise ConfigError(f"expected steps and samples >= 1, got {self.steps}, {self.samples}; raise them")
        if self.lr <= 0 or min(self.identity_weight, self.critic_weight) < 0:
            raise ConfigError(
                f"expected lr > 0 and weights >= 0, got lr={self.lr}, weights={self.identity_weight}, "
                f"{self.critic_weight}; correct them"
            )

    @property
    def sample_steps(self) -> int:
        return self.steps

    def run(self, target: WhiteBoxTarget, prior: CriticPrior, classes: Labels, run: Run) -> Reconstructions:
        latent = GaussianLatent(prior.z.width, bound=1.0 if self.clip == "pre" else None)
        centre = prior.z.draw(torch.zeros(len(classes), prior.z.width, device=classes.device))
        start = latent.start(centre, math.exp(self.log_variance / 2))
        streams = run.streams(classes, torch.zeros_like(classes))
        found = self._descent(target, prior, latent).search(start, classes, streams, run)

        labels = classes.repeat_interleave(self.samples)
        restarts = torch.arange(self.samples, device=classes.device).repeat(len(classes))
        gaussians = found.latents.repeat_interleave(self.samples, dim=0)
        with torch.no_grad():
            drawn = latent.sample(gaussians, run.streams(labels, restarts), self.steps)
            images = run.map(prior.z.decode, drawn).float()
            scores = run.map(target.scores, images)
        run.work.update(generator_forward=len(images), target_forward=len(images))
        return Reconstructions(images, labels, scores.gather(1, labels[:, None]).squeeze(1), (found.curve,))

    def _descent(self, target: WhiteBoxTarget, prior: CriticPrior, latent: GaussianLatent) -> Descent:
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
            optimiser=Adam(self.lr),
            sample=latent.sample,
        )
