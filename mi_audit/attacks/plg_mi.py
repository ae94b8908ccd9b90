"""PLG-MI: search a conditional generator for images of a class that the target names by a wide margin."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import ConditionalPrior
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.descent import Descent
from mi_audit.nn.objectives import max_margin
from mi_audit.nn.optimisers import Adam
from mi_audit.nn.views import Chain, Jitter, RandomCrop, Rotation


@dataclass(frozen=True, kw_only=True)
class PLGMI(Attack[WhiteBoxTarget, ConditionalPrior]):
    """Minimise the margin loss of the class over random views of the image (Sec. 3.4), with no loss of a critic.

    The generator was trained to make images of the class, so it is what keeps them plausible. Every restart starts at
    its own standard normal latent, and every restart is returned: nothing is selected.

    Attributes:
        steps: Gradient steps per latent.
        restarts: Latents, and therefore images, per class.
        lr: Adam step size, in latent units.
        views: Random views of each image per step, over which the loss is summed.
        area: Range of the area shares of their crops.
        jitter: Largest change of brightness and of contrast.
        flip: Share of the views that are mirrored; wrong for digits, letters and most medical pictures.
        degrees: Largest angle that half of the views are turned by.

    Raises:
        ConfigError: A count is below one, or a step size or a range is out of bounds.
    """

    paper: ClassVar = Paper(
        title="Pseudo Label-Guided Model Inversion Attack via Conditional Generative Adversarial Network",
        authors="Yuan et al.",
        venue="AAAI 2023",
        url="https://arxiv.org/abs/2302.09814",
    )
    smoke: ClassVar = {"steps": 40, "restarts": 2, "flip": 0.0}
    quick: ClassVar = {"steps": 120, "flip": 0.0}
    prior: ClassVar = "plg-cgan"
    cost: ClassVar = "600 steps through the generator, 1200 through the target; a prior per target"
    deviations: ClassVar = (
        "Contrast is stretched about the mean of each image, and views are turned by shears.",
        "`quick` mirrors no views, so that it suits digits and letters, too.",
    )

    steps: int = 600
    restarts: int = 5
    lr: float = 0.1
    views: int = 2
    area: tuple[float, float] = (0.8, 1.0)
    jitter: float = 0.2
    flip: float = 0.5
    degrees: float = 5.0

    def __post_init__(self) -> None:
        require_finite(self)
        if min(self.steps, self.restarts, self.views) < 1:
            raise ConfigError(
                f"expected steps, restarts and views >= 1, got {self.steps}, {self.restarts}, {self.views}; raise them"
            )
        if self.lr <= 0 or min(self.jitter, self.degrees) < 0:
            raise ConfigError(
                f"expected lr > 0, jitter and degrees >= 0, got {self.lr}, {self.jitter}, {self.degrees}; correct them"
            )
        self._view(0)

    @property
    def sample_steps(self) -> int:
        return self.restarts * self.steps

    def run(self, target: WhiteBoxTarget, prior: ConditionalPrior, classes: Labels, run: Run) -> Reconstructions:
        labels = classes.repeat_interleave(self.restarts)
        streams = run.streams(labels, torch.arange(self.restarts, device=classes.device).repeat(len(classes)))
        start = prior.z.draw(streams.normal("start", prior.z.width))
        found = self._descent(target, prior).search(start, labels, streams, run)

        with torch.no_grad():
            images = run.map(prior.decode_as, found.latents, labels).float()
            scores = run.map(target.scores, images)
        run.work.update(generator_forward=len(images), target_forward=len(images))
        return Reconstructions(images, labels, scores.gather(1, labels[:, None]).squeeze(1), (found.curve,))

    def _descent(self, target: WhiteBoxTarget, prior: ConditionalPrior) -> Descent:
        def identity(images: Images, labels: Labels) -> PerSample:
            return max_margin(target.logits(images), labels)

        def decode(latents: Latents, labels: Labels) -> Images:
            return prior.decode_as(latents, labels)

        return Descent(
            stage="descend",
            steps=self.steps,
            decode=decode,
            identity=identity,
            identity_weight=float(self.views),  # the shared search takes the mean over views, the paper their sum
            views=tuple(self._view(number) for number in range(self.views)),
            optimiser=Adam(self.lr),
        )

    def _view(self, number: int) -> Chain:
        crop = RandomCrop(self.area, flip=self.flip, name=f"crop {number}")
        jitter = Jitter(self.jitter, self.jitter, name=f"jitter {number}")
        return Chain((crop, jitter, Rotation(self.degrees, name=f"rotation {number}")))
