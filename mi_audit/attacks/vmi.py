"""VMI: learn a distribution of latents per class, so that one search gives any number of different pictures."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import Prior
from mi_audit.core.random import Streams
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.descent import Descent
from mi_audit.nn.flow import Flow, Rows
from mi_audit.nn.objectives import cross_entropy
from mi_audit.nn.optimisers import Momentum
from mi_audit.nn.posteriors import FlowPosterior, GaussianPosterior, Posterior, Vectors


@dataclass(frozen=True, kw_only=True)
class VMI(Attack[WhiteBoxTarget, Prior]):
    """Minimise `E_q[cross-entropy] + divergence_weight * KL(q || N(0, I))` over one distribution q per class (Sec. 3).

    q is a distribution of the standard normal numbers that the prior's latents are drawn from, and starts as that
    normal distribution. The divergence keeps it near: the pictures stay as varied and as plausible as the prior's.
    After the search `images` pictures of each class are drawn from q; nothing is selected.

    Attributes:
        posterior: Family of q: `flow` is a Glow, `gaussian` has a mean and a variance for every direction.
        steps: Gradient steps.
        samples: Latents drawn from each q per step.
        images: Images returned per class.
        lr: Step size.
        momentum: Share of the velocity that is kept.
        divergence_weight: Weight of the Kullback-Leibler divergence, summed over directions.
        scales, flow_steps, hidden: Shape of the flow: scales, steps per scale, units per hidden layer.

    Raises:
        ConfigError: A count is below one, or a step size or weight is out of range.
    """

    paper: ClassVar = Paper(
        title="Variational Model Inversion Attacks",
        authors="Wang et al.",
        venue="NeurIPS 2021",
        url="https://arxiv.org/abs/2201.10787",
    )
    smoke: ClassVar = {"posterior": "gaussian", "steps": 60, "samples": 4, "images": 3, "lr": 0.2}
    quick: ClassVar = {"posterior": "gaussian", "steps": 150, "samples": 8, "images": 5, "lr": 0.1}
    prior: ClassVar = "gmi-gan"
    cost: ClassVar = "301,000 passes through generator and target per class, 3,000 per image"
    deviations: ClassVar = (
        "Published for a StyleGAN2 with one flow for each of its first ten layers, whose divergences are averaged; "
        "here q is one distribution of the numbers that latents are drawn from, which works with any prior.",
        "The flow computes in single precision, and its rescaling starts at one instead of at the statistics of a "
        "first batch: on standard normal noise these are one as well.",
        "The divergence of a Gaussian is computed exactly; the published code estimates it on the batch.",
        "The published script samples from a flow of another shape than the one that was trained; here it is the same.",
        "The last distribution counts; the published code tracks the best epoch by the evaluation model.",
        "Gaussians have no covariances between directions.",
    )

    posterior: Literal["flow", "gaussian"] = "flow"
    steps: int = 4710
    samples: int = 64
    images: int = 100
    lr: float = 1e-4
    momentum: float = 0.9
    divergence_weight: float = 1e-3
    scales: int = 3
    flow_steps: int = 10
    hidden: int = 100

    def __post_init__(self) -> None:
        require_finite(self)
        counts = (self.steps, self.samples, self.images, self.scales, self.flow_steps, self.hidden)
        if min(counts) < 1:
            raise ConfigError(
                f"expected steps, samples, images, scales, flow_steps and hidden >= 1, got {counts}; raise them"
            )
        if self.lr <= 0 or min(self.momentum, self.divergence_weight) < 0:
            raise ConfigError(
                f"expected lr > 0, momentum and divergence_weight >= 0, "
                f"got {self.lr}, {self.momentum}, {self.divergence_weight}; correct them"
            )

    @property
    def sample_steps(self) -> int:
        return self.samples * self.steps

    def run(self, target: WhiteBoxTarget, prior: Prior, classes: Labels, run: Run) -> Reconstructions:
        space, posterior = prior.search, self._posterior(prior.search.width)
        streams = run.streams(classes, torch.zeros_like(classes))
        found = self._descent(target, prior, posterior).search(posterior.start(streams), classes, streams, run)

        labels = classes.repeat_interleave(self.images)
        with torch.no_grad():
            noise = posterior.sample(found.latents, streams, self.steps, self.images)  # a step that no search has seen
            images = run.map(lambda noise: space.decode(space.draw(noise)), noise).float()
            scores = run.map(target.scores, images)
        run.work.update(generator_forward=len(images), target_forward=len(images))
        return Reconstructions(images, labels, scores.gather(1, labels[:, None]).squeeze(1), (found.curve,))

    def _descent(self, target: WhiteBoxTarget, prior: Prior, posterior: Posterior) -> Descent:
        def decode(noise: Latents, labels: Labels) -> Images:
            del labels
            return prior.search.decode(prior.search.draw(noise))

        def identity(images: Images, labels: Labels) -> PerSample:
            return cross_entropy(target.logits(images), labels)

        def sample(rows: Rows, streams: Streams, step: int) -> Vectors:
            return posterior.sample(rows, streams, step, self.samples)

        def divergence(rows: Rows, streams: Streams, step: int) -> PerSample:
            return self.divergence_weight * posterior.divergence(rows, streams, step, self.samples)

        return Descent(
            stage="fit",
            steps=self.steps,
            decode=decode,
            identity=identity,
            sample=sample,
            samples=self.samples,
            penalty=divergence,
            optimiser=Momentum(self.lr, self.momentum),
        )

    def _posterior(self, width: int) -> Posterior:
        if self.posterior == "gaussian":
            return GaussianPosterior(width)
        return FlowPosterior(Flow(width, self.scales, self.flow_steps, self.hidden))
