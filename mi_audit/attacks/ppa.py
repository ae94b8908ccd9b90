"""PPA: search any generator's latent space from a shared pool, and keep what survives random crops."""

from dataclasses import dataclass
from typing import ClassVar

from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import Prior
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Labels
from mi_audit.nn.robust_search import RobustSearch


@dataclass(frozen=True, kw_only=True)
class PPA(Attack[WhiteBoxTarget, Prior]):
    """Optimise latents under light random crops; return those that the target is surest of under heavier ones.

    Three stages (Sec. 3 of the paper): score a pool of random latents once for all classes, move the `restarts` best of
    each class by gradient descent on the Poincare loss, return the `keep` most robust, surest first.

    Attributes:
        generator: Name of the recipe of the generator to search: `gmi-gan`, `stylegan2` or another prior.
        pool: Random latents, shared by all classes.
        truncation: In a style space, the distance of the pool from the average style, as a share.
        restarts: Latents optimised per class, all different; `keep <= restarts <= pool`.
        keep: Images returned per class.
        steps: Gradient steps per latent.
        lr: Adam step size, in latent units; None is 0.005 in a style space and 0.03 in any other.
        betas: Adam decays.
        crop: Side of the middle of the image that the target is shown and that is returned, as a share; 1 shows all
            of it, 0.78 is what the paper takes of a generator of FFHQ-aligned faces.
        gentle: Range of the area shares of the crops to optimise under.
        views: Crops averaged in the final ranking.
        harsh, stretch: Ranges of the area shares and of the width-to-height ratios of those crops.
        flips: Mirror half of them, and score random latents by their mirror images, too; off where mirror images are of
            another class, as with digits.

    Raises:
        ConfigError: The counts do not satisfy `1 <= keep <= restarts <= pool`, or a setting is out of range.
    """

    paper: ClassVar = Paper(
        title="Plug & Play Attacks: Towards Robust and Flexible Model Inversion Attacks",
        authors="Struppek et al.",
        venue="ICML 2022",
        url="https://arxiv.org/abs/2201.12179",
    )
    smoke: ClassVar = {"pool": 32, "restarts": 4, "keep": 2, "steps": 30, "views": 4, "lr": 0.1}
    quick: ClassVar = {"pool": 2000, "restarts": 8, "keep": 5, "steps": 60, "views": 25}
    ranks: ClassVar = True
    prior: ClassVar = "gmi-gan"
    cost: ClassVar = "280 steps through generator and target, 400 target views; shared pool of 5000"
    deviations: ClassVar = (
        "Published with StyleGAN2 only, which `generator=stylegan2` chooses; here any prior works.",
        "For latents that are not styles the step size is 0.03, "
        "because the published 0.005 hardly moves standard normal latents within the published number of steps.",
        "Every image gets its own random crop; the published code draws one crop per batch.",
        "Crop edges are not rounded to pixels.",
        "No centre crop by default: small priors are trained on pictures that are cropped already.",
        "No decay of the step size: only the default file of the published code has it, not its experiments.",
        "The candidate that was scored is the one that is optimised: one truncated style for all layers. The published "
        "code scores images whose last layers are not truncated, and then repeats the first layer's style.",
        "In [0, 1] images are clipped at every step; the published code clips them for the first scores only.",
    )

    generator: str = prior
    pool: int = 5000
    truncation: float = 0.5
    restarts: int = 200
    keep: int = 50
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
        if not 1 <= self.keep <= self.restarts <= self.pool:
            raise ConfigError(
                f"expected 1 <= keep <= restarts <= pool, got {self.keep}, {self.restarts}, {self.pool}; change one"
            )
        if min(self.steps, self.views) < 1 or not 0 < self.crop <= 1 or not 0 <= self.truncation <= 1:
            raise ConfigError(
                f"expected steps and views >= 1, 0 < crop <= 1, 0 <= truncation <= 1, "
                f"got {self.steps}, {self.views}, {self.crop}, {self.truncation}; correct them"
            )
        if self.lr is not None and self.lr <= 0:
            raise ConfigError(f"expected lr > 0, got {self.lr}; leave it out for the usual step size")
        self.search()

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.generator,)

    @property
    def sample_steps(self) -> int:
        return self.restarts * self.steps

    def run(self, target: WhiteBoxTarget, prior: Prior, classes: Labels, run: Run) -> Reconstructions:
        search = self.search()
        return search.shown(prior, search.search(target, prior, classes, run), self.keep, run)

    def search(self) -> RobustSearch:
        """All three stages."""
        return RobustSearch.of(self)
