"""IF-GMI: search the styles of a generator, then its features between blocks, one block deeper at a time."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Size, Tensor

from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import Painting, StylePrior
from mi_audit.core.reconstruction import Curve, Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.balls import onto_l1_ball
from mi_audit.nn.descent import Descent
from mi_audit.nn.objectives import poincare
from mi_audit.nn.optimisers import Adam
from mi_audit.nn.pool import Pool
from mi_audit.nn.views import RandomCrop, centre_crop

Row = Float[Tensor, "b numbers"]  # what a stage moves, in one row per image


class _Layout(NamedTuple):
    """How a row of numbers holds a style, then the features between two blocks, then the colours so far."""

    style: int
    features: Size
    colours: Size

    def pack(self, styles: Latents, painting: Painting | None) -> Row:
        parts = [styles, *(painting or ())]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def unpack(self, rows: Row) -> tuple[Latents, Painting | None]:
        """The colours are constants: they are part of what earlier blocks made."""
        if not self.features:
            return rows, None
        widths = [self.style, self.features.numel(), self.colours.numel()]
        styles, features, colours = rows.split(widths, dim=1)
        return styles, Painting(features.unflatten(1, self.features), colours.detach().unflatten(1, self.colours))


@dataclass(frozen=True, kw_only=True)
class IFGMI(Attack[WhiteBoxTarget, StylePrior]):
    """Optimise styles as PPA does; then, stage by stage, styles and the input of the next block together (Sec. 3).

    The input of block i is what the blocks before it make of the styles and features that the stage before it found.
    Every stage has an optimiser of its own, and stays within an L1 ball around its start, features and styles apart.
    The images of the last stage are returned, all of them.

    Between stages the rows of all latents are kept: a style, the features of one block and the colours. At 1024 pixels
    the input of the last block is 128 channels of 512 pixels a side, 134 MB per latent in single precision, and Adam
    keeps twice that of the `Run.batch_size` latents it moves; give fewer `restarts`, or fewer `steps` (stages).

    Attributes:
        pool: Random latents, shared by all classes.
        truncation: Distance of the pool from the average style, as a share.
        restarts: Latents, and therefore images, per class; `restarts <= pool`.
        steps: Gradient steps of every stage; stages that the generator has no block for are left out.
        radii: Radius of the L1 ball of every stage, for features and styles each.
        lr: Adam step size.
        betas: Adam decays.
        crop: Side of the middle of the image that the target is shown and that is returned, as a share.
        gentle: Range of the area shares of the crops to optimise under.
        flips: Score random latents by their mirror images, too; off where mirror images are of another class.

    Raises:
        ConfigError: A count or range is empty, or there are fewer radii than stages.
    """

    paper: ClassVar = Paper(
        title="A Closer Look at GAN Priors: Exploiting Intermediate Features for Enhanced Model Inversion Attacks",
        authors="Qiu et al.",
        venue="ECCV 2024",
        url="https://arxiv.org/abs/2407.13863",
    )
    smoke: ClassVar = {"pool": 32, "restarts": 2, "steps": (25, 5), "lr": 0.05}
    quick: ClassVar = {"pool": 2000, "restarts": 5, "steps": (40, 10, 10, 10), "lr": 0.02}  # fewer, longer steps
    prior: ClassVar = "stylegan2"
    cost: ClassVar = "170 steps through parts of the generator and the target; shared pool of 5000"
    deviations: ClassVar = (
        "The last stage is returned. The published code returns the stage that the evaluation model likes best, which "
        "no attacker has.",
        "The colours that earlier blocks added are carried on as constants; the published code drops them.",
        "Every image gets its own random crop; the published code draws one crop per batch.",
        "One truncated style for all layers, as in `ppa`.",
        "A generator with fewer blocks than stages goes through as many stages as it has blocks.",
        "In [0, 1] images are clipped at every step; the published code clips them for the first scores only.",
    )

    pool: int = 5000
    truncation: float = 0.5
    restarts: int = 50
    steps: tuple[int, ...] = (70, 25, 25, 25, 25)
    radii: tuple[float, ...] = (1e3, 2e3, 3e3, 4e3, 5e3, 6e3, 8e3, 8e3, 8e3)
    lr: float = 0.005
    betas: tuple[float, float] = (0.1, 0.1)
    crop: float = 1.0
    gentle: tuple[float, float] = (0.9, 1.0)
    flips: bool = True

    def __post_init__(self) -> None:
        require_finite(self)
        if not 1 <= self.restarts <= self.pool or not self.steps or min(self.steps) < 1:
            raise ConfigError(
                f"expected 1 <= restarts <= pool and at least one stage of at least one step, "
                f"got {self.restarts}, {self.pool}, {self.steps}; correct them"
            )
        if len(self.radii) < len(self.steps) or min(self.radii) <= 0 or self.lr <= 0:
            raise ConfigError(
                f"expected a radius > 0 for each of the {len(self.steps)} stages and lr > 0, got {self.radii} and "
                f"{self.lr}; correct them"
            )
        if not (0 <= self.truncation <= 1 and 0 < self.crop <= 1):
            raise ConfigError(
                f"expected 0 <= truncation <= 1 and 0 < crop <= 1, got {self.truncation}, {self.crop}; correct them"
            )
        RandomCrop(self.gentle)

    @property
    def sample_steps(self) -> int:
        """At most: a generator with fewer blocks than stages, which only the smallest are, leaves the last ones out."""
        return self.restarts * sum(self.steps)

    def run(self, target: WhiteBoxTarget, prior: StylePrior, classes: Labels, run: Run) -> Reconstructions:
        labels = classes.repeat_interleave(self.restarts)
        streams = run.streams(labels, torch.arange(self.restarts, device=classes.device).repeat(len(classes)))
        pool = Pool(size=self.pool, truncation=self.truncation, crop=self.crop, mirror=self.flips)
        rows = pool.draw(target, prior, classes, self.restarts, run).best
        layout, curves = _Layout(rows.shape[1], Size(), Size()), list[Curve]()
        for stage in range(min(len(self.steps), prior.blocks)):
            if stage:
                layout, rows = self._deeper(prior, layout, rows, stage, run)
            rows, curve = self._descent(target, prior, layout, stage).search(rows, labels, streams, run)
            curves.append(curve)

        with torch.no_grad():
            images = run.map(lambda part: self._image(prior, layout, part, stage), rows).float()
            scores = run.map(target.scores, images)
        run.work.update(generator_forward=len(images), target_forward=len(images))
        return Reconstructions(images, labels, scores.gather(1, labels[:, None]).squeeze(1), tuple(curves))

    @torch.no_grad()
    def _deeper(
        self, prior: StylePrior, layout: _Layout, rows: Row, stage: int, run: Run
    ) -> tuple[_Layout, Float[Tensor, "b deeper"]]:
        """The rows of the next stage: the same images, cut open one block later."""

        def advance(part: Latents) -> tuple[_Layout, Tensor]:
            styles, painting = layout.unpack(part)
            painting = prior.paint(styles, painting, range(stage - 1, stage))
            deeper = _Layout(layout.style, painting.features.shape[1:], painting.colours.shape[1:])
            return deeper, deeper.pack(styles, painting)

        parts = run.batches(advance, rows)
        return parts[0][0], torch.cat([part for _, part in parts])

    def _image(self, prior: StylePrior, layout: _Layout, rows: Latents, stage: int) -> Images:
        styles, painting = layout.unpack(rows)
        """What the target is shown, and what is returned."""
        return centre_crop(prior.show(prior.paint(styles, painting, range(stage, prior.blocks))), self.crop)

    def _descent(self, target: WhiteBoxTarget, prior: StylePrior, layout: _Layout, stage: int) -> Descent:
        def decode(rows: Latents, labels: Labels) -> Images:
            del labels
            return self._image(prior, layout, rows, stage)

        def identity(images: Images, labels: Labels) -> PerSample:
            return poincare(target.logits(images), labels)

        def tether(rows: Latents, start: Latents) -> Latents:
            styles, rest = (rows - start).tensor_split((layout.style,), dim=1)
            moved = [onto_l1_ball(styles, self.radii[stage])]
            if layout.features:
                features, colours = rest.tensor_split((layout.features.numel(),), dim=1)
                moved += [onto_l1_ball(features, self.radii[stage]), colours]
            return start + torch.cat(moved, dim=1)

        return Descent(
            stage=f"stage {stage}",
            steps=self.steps[stage],
            decode=decode,
            identity=identity,
            views=(RandomCrop(self.gentle, name=f"gentle {stage}"),),
            optimiser=Adam(self.lr, self.betas),
            tether=tether,
        )
