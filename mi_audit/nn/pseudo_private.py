"""Tuning a generator on images that an attack made with it, so that its most typical latents make what they show.

Peng et al., "Pseudo-Private Data Guided Model Inversion Attacks", NeurIPS 2024, point-wise tuning: find the typical
latent whose image is nearest to each given one, then train the generator until that latent makes the given image.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mi_audit.core.errors import Diverged
from mi_audit.core.prior import CriticPrior, Prior, TunablePrior
from mi_audit.core.random import Streams
from mi_audit.core.reconstruction import Curve
from mi_audit.core.run import Run
from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.descent import CURVE_POINTS, Descended, Descent
from mi_audit.nn.optimisers import RampedAdam

COARSEST = 4  # pixels across, below which images are not compared
QUIET = 0.75  # share of the projection after which its latents are no longer disturbed (StyleGAN2's projector)


class Typical(NamedTuple):
    """Where the latents of a space lie: their average, and their root mean square distance from it."""

    mean: Float[Tensor, " width"]
    spread: Float[Tensor, ""]


def likeness(images: Images, references: Images) -> PerSample:
    """`mean over scales of the root mean square difference` of each pair of images, in single precision.

    The scales are the image, then its averages over 2 x 2, 4 x 4, ... pixels, as long as 4 pixels across remain: the
    coarse ones pull shapes together that do not overlap yet.
    """
    gap, scales = (images.float() - references.float()), []
    while True:
        scales.append((gap.square().mean(dim=(1, 2, 3)) + 1e-10).sqrt())
        if min(gap.shape[2:]) < 2 * COARSEST:
            return torch.stack(scales).mean(dim=0)
        gap = F.avg_pool2d(gap, 2)


@torch.no_grad()
def typical(prior: Prior, count: int, device: torch.device, run: Run) -> Typical:
    """Of `count` random latents of the space that attacks search; every class finds the same."""
    index = torch.arange(count, device=device)
    space = prior.search
    drawn = space.draw(run.streams(torch.full_like(index, -1), index).normal("typical", space.width))
    mean = drawn.mean(dim=0)
    return Typical(mean, (drawn - mean).square().sum(dim=1).mean().sqrt())


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoPrivateTuning:
    """Both halves of point-wise tuning.

    Attributes:
        project_steps: Gradient steps per image to find its typical latent.
        project_lr: Largest Adam step size of them, in latent units; it grows over the first 5 % and falls over the
            last 25 %.
        noise: Disturbance of the latents at the first of them, over their spread; none after three quarters.
        critic_weight: Weight of the critic's non-saturating loss, when the prior has a critic.
        tune_steps: Gradient steps of the generator.
        tune_lr: Adam step size of them.
    """

    project_steps: int
    project_lr: float
    noise: float
    critic_weight: float
    tune_steps: int
    tune_lr: float

    def project(self, prior: Prior, images: Images, middle: Typical, streams: Streams, run: Run) -> Descended:
        """A latent for every image, from the average latent on: `min likeness(G(w), x) + critic_weight * -log D(G(w))`.

        The target takes no part.

        Raises:
            Diverged: A loss became NaN or infinite.
        """

        def decode(latents: Latents, rows: Labels) -> Images:
            del rows
            return prior.search.decode(latents)

        def disturbed(latents: Latents, streams: Streams, step: int) -> Latents:
            return latents + self.disturbance(step) * middle.spread * streams.normal(
                "project", latents.shape[1], step=step
            )

        def realism(shown: Images) -> PerSample:
            assert isinstance(prior, CriticPrior)
            return self.critic_weight * F.logsigmoid(prior.realism(shown).float())

        descent = Descent(
            stage="project",
            steps=self.project_steps,
            decode=decode,
            identity=lambda shown, rows: likeness(shown, images[rows]),
            sample=disturbed,
            realism=realism if self.critic_weight and isinstance(prior, CriticPrior) else None,
            optimiser=RampedAdam(self.project_lr, self.project_steps),
        )
        aside = replace(run, work=Counter(), averaging=None)  # what averages and counts is about the target
        rows = torch.arange(len(images), device=images.device)
        found = descent.search(middle.mean.repeat(len(images), 1), rows, streams, aside)
        run.work.update({name: count for name, count in aside.work.items() if not name.startswith("target")})
        return found

    def disturbance(self, step: int) -> float:
        """Noise on the latents at step number `step`, over their spread."""
        return self.noise * max(0.0, 1 - step / self.project_steps / QUIET) ** 2

    def tune(self, prior: TunablePrior, latents: Latents, images: Images, run: Run) -> Curve:
        """Train `prior` in place until the latents make the images: `min over G of mean likeness(G(w), x)`.

        Raises:
            Diverged: A loss became NaN or infinite.
        """
        weights = prior.decoder_weights
        optimiser = torch.optim.Adam(weights, lr=self.tune_lr, fused=weights[0].is_cuda)
        losses = torch.empty(self.tune_steps, device=latents.device)
        for weight in weights:
            weight.requires_grad_(True)
        for step in range(self.tune_steps):
            slopes = run.batches(lambda w, x: _slope(prior, weights, w, x), latents, images)
            losses[step] = torch.stack([loss for loss, _ in slopes]).sum() / len(images)
            for place, weight in enumerate(weights):
                weight.grad = torch.stack([slope[place] for _, slope in slopes]).sum(dim=0) / len(images)
            optimiser.step()
            run.on_step("tune", len(images) * (step + 1), len(images) * self.tune_steps)
        for weight in weights:
            weight.requires_grad_(False).grad = None
        losses = losses.cpu()
        if not losses.isfinite().all():
            raise Diverged(
                f"expected finite losses, got NaN or infinity while the generator was tuned (step "
                f"{int((~losses.isfinite()).int().argmax())} of {self.tune_steps}); lower tune_lr"
            )
        passes = len(images) * self.tune_steps
        run.work.update(generator_forward=passes, generator_backward=passes)
        points = torch.linspace(0, self.tune_steps - 1, min(self.tune_steps, CURVE_POINTS)).round().long()
        return Curve("tune", tuple(points.tolist()), tuple(losses[points].tolist()))


def _slope(
    prior: Prior, weights: tuple[Tensor, ...], latents: Latents, images: Images
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The summed loss of some pairs and its gradient in the weights."""
    with torch.enable_grad():
        loss = likeness(prior.search.decode(latents), images).sum()
        return loss.detach(), torch.autograd.grad(loss, weights)
