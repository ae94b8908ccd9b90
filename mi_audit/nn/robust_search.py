"""PPA's search, from a shared pool to a ranking that survives random crops: what PPA and methods built on it share."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from mi_audit.core.prior import Prior, StylePrior
from mi_audit.core.random import Streams
from mi_audit.core.reconstruction import Curve, Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.descent import Descended, Descent
from mi_audit.nn.objectives import poincare
from mi_audit.nn.optimisers import Adam
from mi_audit.nn.pool import Pool
from mi_audit.nn.views import RandomCrop, centre_crop

STYLE_LR, PLAIN_LR = 0.005, 0.03  # published for StyleGAN's style space; measured on a small GAN's normal latents


class Ranked(NamedTuple):
    """Optimised latents, ordered by class and within each class most robust first."""

    latents: Latents
    labels: Labels
    robustness: PerSample
    curve: Curve


@dataclass(frozen=True, kw_only=True, slots=True)
class RobustSearch:
    """Score a pool of random latents, descend from the best of each class, rank what that led to.

    Attributes:
        pool: Random latents, shared by all classes.
        truncation: In a style space, the distance of the pool from the average style, as a share.
        restarts: Latents optimised per class.
        steps: Gradient steps per latent.
        lr: Adam step size, in latent units; None is 0.005 in a style space and 0.03 in any other.
        betas: Adam decays.
        crop: Side of the middle of the image that the target is shown, as a share.
        gentle: Crops to optimise under.
        harsh: Crops to rank by.
        views: Crops averaged in the ranking.
        mirror: Score random latents by their mirror images, too.
    """

    pool: int
    truncation: float
    restarts: int
    steps: int
    lr: float | None
    betas: tuple[float, float]
    crop: float
    gentle: RandomCrop
    harsh: RandomCrop
    views: int
    mirror: bool

    def search(self, target: WhiteBoxTarget, prior: Prior, classes: Labels, run: Run) -> Ranked:
        """All `restarts` latents of every class.

        Raises:
            Diverged: A loss became NaN or infinite.
        """
        labels = classes.repeat_interleave(self.restarts)
        streams = run.streams(labels, torch.arange(self.restarts, device=classes.device).repeat(len(classes)))
        pool = Pool(size=self.pool, truncation=self.truncation, crop=self.crop, mirror=self.mirror)
        start = pool.draw(target, prior, classes, self.restarts, run).best
        latents, curve = self.descend(target, prior, start, labels, streams, run)
        robustness = self._robustness(target, prior, latents, labels, streams, run)

        ranked = robustness.view(-1, self.restarts).sort(dim=1, descending=True, stable=True).indices  # k restarts
        rows = (torch.arange(len(classes), device=classes.device)[:, None] * self.restarts + ranked).flatten()
        return Ranked(latents[rows], labels, robustness[rows], curve)

    def descend(
        self, target: WhiteBoxTarget, prior: Prior, start: Latents, labels: Labels, streams: Streams, run: Run
    ) -> Descended:
        """The gradient search alone, from `start`."""

        def decode(latents: Latents, labels: Labels) -> Images:
            del labels
            return self._decode(prior, latents)

        def identity(images: Images, labels: Labels) -> PerSample:
            return poincare(target.logits(images), labels)

        descent = Descent(
            stage="optimise",
            steps=self.steps,
            decode=decode,
            identity=identity,
            views=(self.gentle,),
            optimiser=Adam(self.lr or (STYLE_LR if isinstance(prior, StylePrior) else PLAIN_LR), self.betas),
        )
        return descent.search(start, labels, streams, run)

    @torch.no_grad()
    def shown(self, prior: Prior, ranked: Ranked, keep: int, run: Run) -> Reconstructions:
        """The images of the `keep` first of every class, as the target was shown them."""
        first = torch.arange(0, len(ranked.labels), self.restarts, device=ranked.labels.device)[:, None]
        kept = (first + torch.arange(keep, device=first.device)).flatten()
        images = run.map(lambda part: self._decode(prior, part), ranked.latents[kept]).float()
        run.work.update(generator_forward=len(images))
        return Reconstructions(images, ranked.labels[kept], ranked.robustness[kept], (ranked.curve,))

    @torch.no_grad()
    def _robustness(
        self, target: WhiteBoxTarget, prior: Prior, latents: Latents, labels: Labels, streams: Streams, run: Run
    ) -> PerSample:
        """Mean probability of the label over heavy random crops: images times views, in one stream of full batches."""

        def judge(rows: range, latents: Latents, labels: Labels, streams: Streams) -> PerSample:
            images = self._decode(prior, latents)

            def score(image: Labels, view: Labels) -> PerSample:
                scores = target.scores(self.harsh(images[image], streams[image], view))
                return scores.gather(1, labels[image, None]).squeeze(1)

            index = torch.arange(len(rows), device=latents.device).repeat_interleave(self.views)
            view = torch.arange(self.views, device=latents.device).repeat(len(rows))
            means = run.map(score, index, view).view(-1, self.views).mean(dim=1)
            run.on_step("select", rows.stop, total)
            return means

        total = len(labels)
        run.work.update(generator_forward=total, target_forward=total * self.views)
        return run.map(judge, range(total), latents, labels, streams)

    def _decode(self, prior: Prior, latents: Latents) -> Images:
        """What every stage judges, and what is returned."""
        return centre_crop(prior.search.decode(latents), self.crop)
