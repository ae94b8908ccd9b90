"""PPDG-MI: search as PPA does, tune the generator of each class on what was found, and search again."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import TunablePrior
from mi_audit.core.reconstruction import Curve, Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Labels
from mi_audit.nn.pseudo_private import PseudoPrivateTuning, Typical, typical
from mi_audit.nn.robust_search import Ranked, RobustSearch

DRAWN = 600  # latents that the published projection averages


@dataclass(frozen=True, kw_only=True)
class PPDGMI(Attack[WhiteBoxTarget, TunablePrior]):
    """Repeat PPA on a generator that its own best images have drawn towards the class (point-wise tuning).

    Between two rounds, for every class: its `pseudo` most robust images x become pseudo-private data; for each of them
    a typical latent w near it is found, `min over w of likeness(G(w), x) + critic_weight * -log sigmoid(D(G(w)))` from
    the average latent on; then a copy of the generator is trained, `min over G of mean likeness(G(w), x)`. So the class
    moves to where random latents fall, and the next round, with a pool of its own, finds it more often. Every class
    starts from the generator as it was given. The target takes no part in the tuning.

    Attributes:
        generator: Name of the recipe of the generator to search and tune.
        rounds: Searches in all, at least 2; the images of the last one are returned.
        pseudo: Pseudo-private images per class; `pseudo <= restarts`.
        project_steps: Gradient steps to find the typical latent of an image.
        project_lr: Largest Adam step size of them; it grows over the first 5 % and falls over the last 25 %.
        noise: Disturbance of the latents at the first of them, over the root mean square distance of latents from
            their average; it falls to nothing within three quarters of the steps.
        critic_weight: Weight of the critic's loss, where the prior has a critic.
        tune_steps: Gradient steps of the generator.
        tune_lr: Adam step size of them.
        pool: Random latents of every search; those of the first one are shared by all classes.
        truncation: In a style space, the distance of the pool from the average style, as a share.
        restarts: Latents optimised per class and round, all different; `keep <= restarts <= pool`.
        keep: Images returned per class.
        steps: Gradient steps per latent.
        lr: Adam step size, in latent units; None is 0.005 in a style space and 0.03 in any other.
        betas: Adam decays.
        crop: Side of the middle of the image that the target is shown and that is returned, as a share.
        gentle: Range of the area shares of the crops to optimise under.
        views: Crops averaged in a ranking.
        harsh, stretch: Ranges of the area shares and of the width-to-height ratios of those crops.
        flips: Mirror half of them, and score random latents by their mirror images, too; off where mirror images are of
            another class, as with digits.

    Raises:
        ConfigError: The counts do not satisfy `1 <= keep, pseudo <= restarts <= pool`, or a setting is out of range.
    """

    paper: ClassVar = Paper(
        title="Pseudo-Private Data Guided Model Inversion Attacks",
        authors="Peng et al.",
        venue="NeurIPS 2024",
        url="https://openreview.net/forum?id=pyqPUf36D2",
    )
    smoke: ClassVar = {
        "pseudo": 2, "project_steps": 20, "project_lr": 0.1, "tune_steps": 10, "tune_lr": 0.02,
        "pool": 32, "restarts": 4, "keep": 2, "steps": 30, "views": 4, "lr": 0.1,
    }  # fmt: skip
    quick: ClassVar = {
        "project_steps": 100, "project_lr": 0.03, "tune_steps": 50,
        "restarts": 8, "keep": 5, "steps": 60, "views": 25,
    }  # fmt: skip
    ranks: ClassVar = True
    prior: ClassVar = "gmi-gan"
    cost: ClassVar = (
        "140 steps through generator and target, 200 target views; per class 2250 steps of the generator and a pool of "
        "500; a first pool of 500 shared"
    )
    deviations: ClassVar = (
        "Published with StyleGAN2, which `generator=stylegan2` chooses; here any prior whose weights can be trained. "
        "The published variants for small GANs train on the public images again; here small GANs are tuned like large.",
        "Images are compared by their pixels on several scales; the published likeness is LPIPS on VGG-16, which was "
        "trained on photographs, and whose weights are not downloaded unasked.",
        "Point-wise tuning only; the published code also has two objectives that compare sets of images.",
        "The critic keeps typical latents realistic where the prior has one: that of `stylegan2` is not kept.",
        "The mapping network of a style generator is not handed to the optimiser: it never had a gradient.",
        "Every round draws the same random latents, so that rounds differ by the tuning alone.",
        "No decay of the step size, and crops, clipping and truncation as in `ppa`.",
    )

    generator: Literal["gmi-gan", "kedmi-gan", "stylegan2"] = "gmi-gan"
    rounds: int = 2
    pseudo: int = 5
    project_steps: int = 300
    project_lr: float = 0.01
    noise: float = 0.05
    critic_weight: float = 0.1
    tune_steps: int = 150
    tune_lr: float = 3e-4
    pool: int = 500
    truncation: float = 0.5
    restarts: int = 100
    keep: int = 100
    steps: int = 70
    lr: float | None = None
    betas: tuple[float, float] = (0.1, 0.1)
    crop: float = 1.0
    gentle: tuple[float, float] = (0.9, 1.0)
    views: int = 100
    harsh: tuple[float, float] = (0.5, 0.9)
    stretch: tuple[float, float] = (0.8, 1.2)
    flips: bool = True

    def __post_init__(self) -> None:
        require_finite(self)
        if not 1 <= min(self.keep, self.pseudo) <= max(self.keep, self.pseudo) <= self.restarts <= self.pool:
            raise ConfigError(
                f"expected 1 <= keep, pseudo <= restarts <= pool, got {self.keep}, {self.pseudo}, {self.restarts}, "
                f"{self.pool}; change one"
            )
        if self.rounds < 2 or min(self.steps, self.views, self.project_steps, self.tune_steps) < 1:
            raise ConfigError(
                f"expected rounds >= 2, and steps, views, project_steps and tune_steps >= 1, got {self.rounds}, "
                f"{self.steps}, {self.views}, {self.project_steps}, {self.tune_steps}; one round is `ppa`"
            )
        if min(self.project_lr, self.tune_lr) <= 0 or min(self.noise, self.critic_weight) < 0:
            raise ConfigError(
                f"expected project_lr and tune_lr > 0, noise and critic_weight >= 0, got {self.project_lr}, "
                f"{self.tune_lr}, {self.noise}, {self.critic_weight}; correct them"
            )
        if not (0 < self.crop <= 1 and 0 <= self.truncation <= 1) or (self.lr is not None and self.lr <= 0):
            raise ConfigError(
                f"expected 0 < crop <= 1, 0 <= truncation <= 1 and lr > 0, got {self.crop}, {self.truncation}, "
                f"{self.lr}; correct them"
            )
        self.search()

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.generator,)

    @property
    def sample_steps(self) -> int:
        return self.restarts * self.steps + (self.rounds - 1) * sum(self._round().values())

    def run(self, target: WhiteBoxTarget, prior: TunablePrior, classes: Labels, run: Run) -> Reconstructions:
        first = self.search().search(target, prior, classes, run)
        middle = typical(prior, DRAWN, classes.device, run)
        parts = [
            self._later_rounds(target, prior, middle, _of(first, rows), self._reporting(run, place, len(classes)))
            for place, rows in enumerate(torch.arange(len(first.labels)).split(self.restarts))
        ]
        curves = tuple(_mean(of_one_stage) for of_one_stage in zip(*(part.curves for part in parts), strict=True))
        return Reconstructions(
            torch.cat([part.images for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.confidence for part in parts]),
            (replace(first.curve, stage="round 1"), *curves),
        )

    def search(self) -> RobustSearch:
        """One round."""
        return RobustSearch.of(self, keep=max(self.keep, self.pseudo))

    def _later_rounds(
        self, target: WhiteBoxTarget, prior: TunablePrior, middle: Typical, found: Ranked, run: Run
    ) -> Reconstructions:
        """What the last round finds of one class, on a generator of its own."""
        own, search, tuning = prior.copied(), self.search(), self._tuning()
        curves: list[Curve] = []
        for number in range(2, self.rounds + 1):
            chosen = found.latents[: self.pseudo]
            with torch.no_grad():
                images = run.map(own.search.decode, chosen).float()
            run.work.update(generator_forward=len(images))
            labels = found.labels[: self.pseudo]
            streams = run.streams(labels, torch.arange(len(labels), device=labels.device))
            latents, projected = tuning.project(own, images, middle, streams, run)
            tuned = tuning.tune(own, latents, images, run)
            found = search.search(target, own, found.labels[:1], run)
            stages = {"project": projected, "tune": tuned, "round": found.curve}
            curves += [replace(curve, stage=f"{stage} {number}") for stage, curve in stages.items()]
        return replace(search.shown(own, found, self.keep, run), curves=tuple(curves))

    def _tuning(self) -> PseudoPrivateTuning:
        return PseudoPrivateTuning(
            project_steps=self.project_steps,
            project_lr=self.project_lr,
            noise=self.noise,
            critic_weight=self.critic_weight,
            tune_steps=self.tune_steps,
            tune_lr=self.tune_lr,
        )

    def _round(self) -> dict[str, int]:
        """Sample-steps of every stage of a later round, in order."""
        return {
            "project": self.pseudo * self.project_steps,
            "tune": self.pseudo * self.tune_steps,
            "optimise": self.restarts * self.steps,
        }

    def _reporting(self, run: Run, place: int, classes: int) -> Run:
        """The same run, whose progress is that of all later rounds of all classes, in one stage, `refine`."""
        stages, round_of = self._round(), Counter[str]()
        each = sum(stages.values())

        def on_step(stage: str, done: int, total: int) -> None:
            if stage in stages:
                before = sum(list(stages.values())[: list(stages).index(stage)])
                past = (place * (self.rounds - 1) + round_of[stage]) * each
                run.on_step("refine", past + before + done, classes * (self.rounds - 1) * each)
                round_of[stage] += done == total

        return replace(run, on_step=on_step)


def _of(ranked: Ranked, rows: Labels) -> Ranked:
    """Some rows of what was found; the curve is that of all."""
    rows = rows.to(ranked.labels.device)
    return Ranked(ranked.latents[rows], ranked.labels[rows], ranked.robustness[rows], ranked.curve)


def _mean(curves: tuple[Curve, ...]) -> Curve:
    """The mean of the curves of one stage over the classes."""
    losses = torch.tensor([curve.losses for curve in curves], dtype=torch.float64).mean(dim=0)
    return replace(curves[0], losses=tuple(losses.tolist()))
