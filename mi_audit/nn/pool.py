"""A pool of random latents that all classes share, and the ones that a target is surest of: where searches start."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from mi_audit.core.prior import Prior, StylePrior
from mi_audit.core.run import Run
from mi_audit.core.target import ScoreTarget
from mi_audit.core.types import Labels, Latents, Scores
from mi_audit.nn.mixed_precision import Rows, decided, networks
from mi_audit.nn.views import centre_crop

COMPARED = 32  # latents that decide whether bfloat16 ranks as single precision does
LEAST_SCORE = 1e-12  # of which there is a logarithm


class Drawn(NamedTuple):
    """The pool, and of every class in turn the latents it is surest of, surest first."""

    pool: Latents
    best: Latents


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Random latents of the space that attacks search, scored once for all classes.

    Attributes:
        size: Number of latents.
        truncation: In a style space, their distance from the average style, as a share of what was drawn.
        crop: Side of the middle of the image that the target is shown, as a share.
        mirror: Average the score over an image and its mirror image.
    """

    size: int
    truncation: float = 1.0
    crop: float = 1.0
    mirror: bool = True

    @torch.no_grad()
    def draw(self, target: ScoreTarget, prior: Prior, classes: Labels, count: int, run: Run) -> Drawn:
        """The pool depends on the seed alone, and the `count` latents of a class differ from each other."""
        pool, space = self._latents(prior, classes.device, run), prior.search
        copies = 2 if self.mirror else 1

        def judge(latents: Latents, run: Run) -> Scores:
            with networks(run, latents.device):
                images = centre_crop(space.decode(latents).float(), self.crop)
                scores = target.scores(images)[:, classes]
                if self.mirror:
                    scores = scores + target.scores(images.flip(3))[:, classes]
            return scores / copies

        def contrasts(run: Run) -> Rows:
            sure = run.map(lambda latents: judge(latents, run), pool[:COMPARED]).clamp_min(LEAST_SCORE).log()
            return (sure - sure.mean(dim=0)).T  # of every class, which latents it is surer of

        run = decided(run, "pool", pool.device, contrasts)

        def score(rows: range, latents: Latents) -> Scores:
            scores = judge(latents, run)
            run.on_step("pool", rows.stop, self.size)
            return scores

        scores = run.map(score, range(self.size), pool)
        run.work.update(generator_forward=self.size, target_forward=copies * self.size)
        best = scores.sort(dim=0, descending=True, stable=True).indices[:count]  # count k
        return Drawn(pool, pool[best.T.flatten()])

    def _latents(self, prior: Prior, device: torch.device, run: Run) -> Latents:
        def draw(rows: range) -> Latents:
            index = torch.arange(rows.start, rows.stop, device=device)
            streams = run.streams(torch.full_like(index, -1), index)  # of no class, so that all classes share one pool
            return prior.search.draw(streams.normal("pool", prior.search.width))

        pool = run.map(draw, range(self.size))
        return prior.w.truncated(pool, self.truncation) if isinstance(prior, StylePrior) else pool
