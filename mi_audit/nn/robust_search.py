"""PPA's search, from a shared pool to a ranking that survives random crops: what PPA and methods built on it share."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.attack import Attack
from mi_audit.core.prior import Prior, StylePrior
from mi_audit.core.random import Streams
from mi_audit.core.reconstruction import Curve, Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.descent import Descended, Descent
from mi_audit.nn.halving import ranking, rounds
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
        gentle: Range of the area shares of the crops to optimise under.
        views: Crops averaged in the ranking.
        harsh, stretch: Ranges of the area shares and of the width-to-height ratios of those crops.
        keep: Latents per class that the caller goes on with; ranking in rounds drops none of the best that many.
        flips: Mirror half of those crops, and score random latents by their mirror images, too.

    Raises:
        ConfigError: A range is empty or out of bounds.
    """

    pool: int
    truncation: float
    restarts: int
    steps: int
    lr: float | None
    betas: tuple[float, float]
    crop: float
    gentle: tuple[float, float]
    views: int
    harsh: tuple[float, float]
    stretch: tuple[float, float]
    keep: int
    flips: bool

    def __post_init__(self) -> None:
        self._crops()

    @classmethod
    def of(cls, attack: Attack[Any, Any], **changed: object) -> "RobustSearch":
        """The search of an attack whose settings have the names of these, but for those `changed`."""
        settings: dict[str, Any] = {setting.name: getattr(attack, setting.name) for setting in fields(cls)}
        return cls(**{**settings, **changed})

    def search(self, target: WhiteBoxTarget, prior: Prior, classes: Labels, run: Run) -> Ranked:
        """All `restarts` latents of every class.

        With `run.halving` those that a round of the ranking dropped come last, with what was seen of them.

        Raises:
            Diverged: A loss became NaN or infinite.
        """
        labels = classes.repeat_interleave(self.restarts)
        streams = run.streams(labels, torch.arange(self.restarts, device=classes.device).repeat(len(classes)))
        pool = Pool(size=self.pool, truncation=self.truncation, crop=self.crop, mirror=self.flips)
        start = pool.draw(target, prior, classes, self.restarts, run).best
        latents, curve = self.descend(target, prior, start, labels, streams, run)
        rows, robustness = self._ranked(target, prior, latents, labels, streams, run)
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
            views=(self._crops()[0],),
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
    def _ranked(
        self, target: WhiteBoxTarget, prior: Prior, latents: Latents, labels: Labels, streams: Streams, run: Run
    ) -> tuple[Labels, PerSample]:
        """The rows, ordered by class and within each most robust first, and the robustness of every row.

        Robustness is the mean probability of the label over heavy random crops: images times views, in one stream of
        full batches.
        """
        plan = rounds(self.restarts, self.keep, self.views, halving=run.halving)
        classes, (_, harsh) = len(labels) // self.restarts, self._crops()
        total = classes * sum(part.candidates * len(part.views) for part in plan)

        def judged(rows: Labels, views: range, done: int) -> Float[Tensor, "rows views"]:
            def judge(part: range, latents: Latents, labels: Labels, streams: Streams) -> Float[Tensor, "b views"]:
                images = self._decode(prior, latents)

                def score(image: Labels, view: Labels) -> PerSample:
                    scores = target.scores(harsh(images[image], streams[image], view))
                    return scores.gather(1, labels[image, None]).squeeze(1)

                index = torch.arange(len(part), device=latents.device).repeat_interleave(len(views))
                view = torch.arange(views.start, views.stop, device=latents.device).repeat(len(part))
                scores = run.map(score, index, view).view(-1, len(views))
                run.on_step("select", done + part.stop * len(views), total)
                return scores

            run.work.update(generator_forward=len(rows), target_forward=len(rows) * len(views))
            return run.map(judge, range(len(rows)), latents[rows], labels[rows], streams[rows])

        return ranking(judged, plan, classes, labels.device)

    def _crops(self) -> tuple[RandomCrop, RandomCrop]:
        """Those to optimise under, and those to rank by."""
        flip = 0.5 if self.flips else 0.0
        return RandomCrop(self.gentle, name="gentle"), RandomCrop(self.harsh, self.stretch, flip=flip, name="harsh")

    def _decode(self, prior: Prior, latents: Latents) -> Images:
        """What every stage judges, and what is returned."""
        return centre_crop(prior.search.decode(latents), self.crop)
