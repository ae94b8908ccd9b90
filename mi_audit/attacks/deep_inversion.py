"""DeepInversion: optimise bare pixels until the target's batch normalisations see what they saw in training."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import Prior
from mi_audit.core.random import Streams
from mi_audit.core.reconstruction import Curve, Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.descent import Descended, Descent
from mi_audit.nn.objectives import cross_entropy
from mi_audit.nn.optimisers import Adam, WarmCosine
from mi_audit.nn.pixel_space import CENTRE, SPREAD, Roll, coarse, statistics_distance, total_variation
from mi_audit.nn.views import Chain


@dataclass(frozen=True, kw_only=True)
class DeepInversion(Attack[WhiteBoxTarget, Prior]):
    """Minimise cross-entropy + statistics + total variation + norm over pixels (Eq. 2 to 4 of the paper).

    The only knowledge of images is in the target: the means and variances that its batch normalisations learned. They
    are matched by the `images` pictures of a class together, which is why these are optimised as one. First at half
    the resolution, then at full.

    Attributes:
        images: Images per class, optimised and returned together.
        coarse_steps: Gradient steps at half the resolution; 0 leaves them out.
        steps: Gradient steps at full resolution.
        warm_up: Steps until the step size is reached, in either stage; from then on it falls along a cosine.
        lr: Adam step size, in units of 0.225 of the range of a pixel.
        betas: Adam decays.
        statistics_weight: Weight of the distance to the learned statistics.
        first_layer: How many times the first batch normalisation counts.
        variation_weight, norm_weight: Weights of the total variation and of the norm of the pixels, in those units.
        jitter: Largest random shift, as a share of the side.
        flip: Probability of mirroring; 0 for digits and letters.

    Raises:
        ConfigError: A count, a step size or a weight is out of range.
    """

    paper: ClassVar = Paper(
        title="Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion",
        authors="Yin et al.",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/1912.08795",
    )
    smoke: ClassVar = {"images": 2, "coarse_steps": 20, "steps": 20, "warm_up": 4, "flip": 0.0}
    quick: ClassVar = {"images": 5, "coarse_steps": 200, "steps": 100, "warm_up": 20, "flip": 0.0}
    prior: ClassVar = "pixels"
    cost: ClassVar = "3000 steps through the target; no generator"
    deviations: ClassVar = (
        "The statistics are those of the images of one class. The published batch mixes 84 images of many classes, "
        "which makes every image depend on all others and on the batch size; the statistics of a single class differ "
        "from those of all, so here the term also pulls every class towards the average.",
        "A target without batch normalisation is attacked without the statistics, which leaves little that is natural.",
        "Every image is shifted and mirrored by itself; the published code moves a batch as one.",
        "Shifts reach 5 % of the side, as in the authors' CIFAR script; their ImageNet script takes 30 of 224 pixels.",
        "At half the resolution every four pixels are replaced by their mean and the image keeps its size, because a "
        "target owns its resize; the published code feeds the smaller image.",
        "At that resolution, too, the total variation and the norm are those of the full-size pixels, and at either of "
        "pixels that are not shifted; the published code takes both of what the network is shown.",
        "The images of the last step are returned, not those of the lowest loss: the loss of a step depends on its "
        "random shift, and the step size falls to zero.",
        "`quick` mirrors no images, so that it suits digits and letters, too.",
        "All channels share one unit and one centre; the published code has those of ImageNet per channel.",
        "The term of a competing student (Adaptive DeepInversion) is left out; it is off in the published code, too.",
    )

    images: int = 8
    coarse_steps: int = 2000
    steps: int = 1000
    warm_up: int = 100
    lr: float = 0.25
    betas: tuple[float, float] = (0.5, 0.9)
    statistics_weight: float = 0.01
    first_layer: float = 10.0
    variation_weight: float = 1e-4
    norm_weight: float = 1e-5
    jitter: float = 0.05
    flip: float = 0.5

    def __post_init__(self) -> None:
        require_finite(self)
        if min(self.images, self.steps) < 1 or self.coarse_steps < 0:
            raise ConfigError(
                f"expected images and steps >= 1, coarse_steps >= 0, "
                f"got {self.images}, {self.steps}, {self.coarse_steps}; raise them"
            )
        if not 0 <= self.warm_up < min(self.steps, self.coarse_steps or self.steps):
            raise ConfigError(f"expected 0 <= warm_up < steps of either stage, got {self.warm_up}; lower it")
        weights = (self.statistics_weight, self.first_layer, self.variation_weight, self.norm_weight)
        if self.lr <= 0 or min(weights) < 0 or not (0 <= self.jitter <= 0.5 and 0 <= self.flip <= 1):
            raise ConfigError(
                f"expected lr > 0, weights >= 0, 0 <= jitter <= 0.5 and 0 <= flip <= 1, "
                f"got {self.lr}, {weights}, {self.jitter}, {self.flip}; correct them"
            )

    @property
    def sample_steps(self) -> int:
        return self.images * (self.coarse_steps + self.steps)

    def run(self, target: WhiteBoxTarget, prior: Prior, classes: Labels, run: Run) -> Reconstructions:
        labels = classes.repeat_interleave(self.images)
        numbers = torch.arange(self.images, device=classes.device).repeat(len(classes))
        noise = run.streams(labels, numbers).normal("start", prior.search.width)
        latents = prior.search.draw(noise).unflatten(0, (-1, self.images))
        streams = run.streams(classes, torch.zeros_like(classes))
        curves: list[Curve] = []
        for stage, steps in (("coarse", self.coarse_steps), ("fine", self.steps)):
            if steps:
                found = self._search(target, prior, stage, steps, latents, classes, streams, run)
                latents = found.latents
                curves.append(found.curve)

        with torch.no_grad():
            images = run.map(prior.search.decode, latents.flatten(0, 1)).float()
            scores = run.map(target.scores, images)
        run.work.update(generator_forward=len(images), target_forward=len(images))
        return Reconstructions(images, labels, scores.gather(1, labels[:, None]).squeeze(1), tuple(curves))

    def _search(
        self, target: WhiteBoxTarget, prior: Prior, stage: str, steps: int, start: Latents, classes: Labels,
        streams: Streams, run: Run,
    ) -> Descended:  # fmt: skip
        """One stage; a row of latents holds all images of a class."""
        space = prior.search

        def decode(latents: Latents, labels: Labels) -> Images:
            del labels
            return space.decode(latents)

        def identity(images: Images, labels: Labels) -> PerSample:
            logits, seen = target.logits_and_normalisations(images)
            loss = cross_entropy(logits, labels)
            if not seen or not self.statistics_weight:
                return loss
            distance = statistics_distance(seen, self.images, self.first_layer)
            return loss + self.statistics_weight * distance.repeat_interleave(self.images)

        def roughness(latents: Latents, streams: Streams, step: int) -> PerSample:
            del streams, step
            pixels = (space.decode(latents.flatten(0, 1)).float() - CENTRE) / SPREAD
            norm = pixels.flatten(1).norm(dim=1).view(-1, self.images).mean(dim=1)
            return self.variation_weight * total_variation(pixels, self.images) + self.norm_weight * norm

        roll = Roll(self.jitter, self.flip, name=f"roll/{stage}")
        descent = Descent(
            stage=stage,
            steps=steps,
            decode=decode,
            identity=identity,
            penalty=roughness,
            views=(Chain((coarse, roll)) if stage == "coarse" else roll,),
            sample=lambda latents, *_: latents.flatten(0, 1),
            samples=self.images,
            optimiser=WarmCosine(Adam(self.lr, self.betas), steps, self.warm_up),
            constraint=lambda latents: space.project(latents.flatten(0, 1)).unflatten(0, (-1, self.images)),
        )
        return descent.search(start, classes, streams, run)
