"""MIRROR: search the styles of a generator inside the box that its mapping network fills."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import StylePrior
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Latents, PerSample, Scores
from mi_audit.nn.descent import Descent
from mi_audit.nn.objectives import cross_entropy
from mi_audit.nn.optimisers import RampedAdam
from mi_audit.nn.pool import Pool
from mi_audit.nn.views import RandomCrop

SLOPE = 0.2  # of the leaky ReLU that ends the mapping network
RUNNERS_UP = 4  # labels after the first that a candidate's neighbourhood is read from


class Box(NamedTuple):
    """Bounds of each number of a style."""

    low: Float[Tensor, " style"]
    high: Float[Tensor, " style"]


@dataclass(frozen=True, kw_only=True)
class Mirror(Attack[WhiteBoxTarget, StylePrior]):
    """Minimise cross-entropy over styles w inside a box in P space; keep a typical candidate (Sec. IV).

    P space is what the mapping network's last leaky ReLU is given, `p = w for w > 0, 5 w below`; there styles are about
    normal, so the box is the mean plus and minus `deviations_wide` standard deviations of the pool. What is kept is
    chosen by the target alone: of the largest group of candidates with two runner-up labels in common, the surest.

    Attributes:
        pool: Random latents, shared by all classes; they also set the box.
        truncation: Distance of the pool from the average style, as a share.
        restarts: Latents optimised per class; `keep <= restarts <= pool`.
        keep: Images returned per class.
        steps: Gradient steps per latent.
        lr: Largest step size of Adam; it grows over the first 5 % of the steps and falls over the last 25 %.
        deviations_wide: Half the side of the box, in standard deviations.
        flip: Probability of mirroring an image before the target sees it; 0 where mirror images are of another class.

    Raises:
        ConfigError: The counts do not satisfy `1 <= keep <= restarts <= pool`, or a setting is out of range.
    """

    paper: ClassVar = Paper(
        title="MIRROR: Model Inversion for Deep Learning Network with High Fidelity",
        authors="An et al.",
        venue="NDSS 2022",
        url="https://doi.org/10.14722/ndss.2022.24335",
    )
    smoke: ClassVar = {"pool": 64, "restarts": 3, "keep": 2, "steps": 30, "flip": 0.0}
    quick: ClassVar = {"pool": 2000, "keep": 5, "steps": 100, "flip": 0.0}
    prior: ClassVar = "stylegan2"
    cost: ClassVar = "160000 steps through generator and target; shared pool of 100000"
    deviations: ClassVar = (
        "Published with StyleGAN1, of 256 pixels; here with StyleGAN2, whose mapping ends in the same leaky ReLU.",
        "Every image is mirrored by its own draw; the published code mirrors whole batches.",
        "The last style is kept. The published code keeps the one after the lowest loss of the batch, one step late, "
        "which depends on the batch; the step size falls to zero, so the last steps hardly differ.",
        "The cross-entropy is not multiplied by ten: Adam divides by the scale of the gradient.",
        "Dropout in the target stays off: the published scripts switch it on for one architecture.",
        "The candidate that was scored is the one that is optimised: one truncated style for all layers. The "
        "published code truncates the styles of the first eight layers only.",
        "`quick` mirrors no images, so that it suits digits and letters, too.",
        "A group of candidates has at least two members, and is found by pairs of labels instead of by all subsets.",
    )

    pool: int = 100_000
    truncation: float = 0.7
    restarts: int = 8
    keep: int = 1
    steps: int = 20_000
    lr: float = 0.25
    deviations_wide: float = 1.0
    flip: float = 0.5

    def __post_init__(self) -> None:
        require_finite(self)
        if not 1 <= self.keep <= self.restarts <= self.pool:
            raise ConfigError(
                f"expected 1 <= keep <= restarts <= pool, got {self.keep}, {self.restarts}, {self.pool}; change one"
            )
        if self.pool < 2 or self.steps < 1 or min(self.lr, self.deviations_wide) <= 0:
            raise ConfigError(
                f"expected pool >= 2, steps >= 1, lr and deviations_wide > 0, got {self.pool}, {self.steps}, "
                f"{self.lr}, {self.deviations_wide}; raise them"
            )
        if not (0 <= self.truncation <= 1 and 0 <= self.flip <= 1):
            raise ConfigError(
                f"expected truncation and flip from 0 to 1, got {self.truncation}, {self.flip}; correct them"
            )

    @property
    def sample_steps(self) -> int:
        return self.restarts * self.steps

    def run(self, target: WhiteBoxTarget, prior: StylePrior, classes: Labels, run: Run) -> Reconstructions:
        labels = classes.repeat_interleave(self.restarts)
        streams = run.streams(labels, torch.arange(self.restarts, device=classes.device).repeat(len(classes)))
        drawn = Pool(size=self.pool, truncation=self.truncation, mirror=False).draw(
            target, prior, classes, self.restarts, run
        )
        descent = self._descent(target, prior, box_of(drawn.pool, self.deviations_wide))
        styles, curve = descent.search(drawn.best, labels, streams, run)

        with torch.no_grad():
            images = run.map(prior.w.decode, styles).float()
            scores = run.map(target.scores, images)
        run.work.update(generator_forward=len(images), target_forward=len(images))
        kept = self._kept(scores, classes)
        return Reconstructions(images[kept], labels[kept], scores[kept, labels[kept]], (curve,))

    def _descent(self, target: WhiteBoxTarget, prior: StylePrior, box: Box) -> Descent:
        def decode(styles: Latents, labels: Labels) -> Images:
            del labels
            return prior.w.decode(styles)

        def identity(images: Images, labels: Labels) -> PerSample:
            return cross_entropy(target.logits(images), labels)

        return Descent(
            stage="optimise",
            steps=self.steps,
            decode=decode,
            identity=identity,
            views=(RandomCrop((1.0, 1.0), flip=self.flip, name="mirror"),),
            optimiser=RampedAdam(self.lr, self.steps),
            constraint=lambda styles: styles.clamp(box.low, box.high),
        )

    def _kept(self, scores: Float[Tensor, "n k"], classes: Labels) -> Int[Tensor, " m"]:
        """Rows to return: for every class the members of its group first, surest first."""
        kept = []
        for place, label in enumerate(classes.tolist()):
            rows = scores[place * self.restarts : (place + 1) * self.restarts]
            rank = rows[:, label] + typical(rows, label)  # probabilities stay below one
            best = rank.sort(descending=True, stable=True).indices[: self.keep]
            kept.append(place * self.restarts + best)
        return torch.cat(kept)


def box_of(styles: Float[Tensor, "n style"], wide: float) -> Box:
    """The bounds in w of mean +- `wide` standard deviations in P space."""
    p = F.leaky_relu(styles, 1 / SLOPE)
    middle, spread = p.mean(dim=0), p.std(dim=0)
    return Box(F.leaky_relu(middle - wide * spread, SLOPE), F.leaky_relu(middle + wide * spread, SLOPE))


def typical(scores: Scores, label: int) -> Bool[Tensor, " b"]:
    """The largest group of candidates of `label` that share two runner-up labels; else one; else all candidates.

    Candidates are the rows whose first label it is, or all rows when there is none. Of equal groups the one with the
    surest member is taken.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, : RUNNERS_UP + 1]
    candidates = order[:, 0] == label
    if not candidates.any():
        return torch.ones_like(candidates)
    near = torch.zeros_like(scores).scatter(1, order[:, 1:], 1.0) * candidates[:, None]  # b k
    surest = scores[:, label] * candidates
    for pairs in (True, False):
        found = _largest(near, surest, pairs)
        if found is not None:
            return found
    return candidates


def _largest(near: Scores, surest: PerSample, pairs: bool) -> Bool[Tensor, " b"] | None:
    """The largest group of at least two rows that have two labels in common, or one when not `pairs`."""
    shared = near.T @ near  # k k: rows that are near both labels
    shared = shared.triu(1) if pairs else shared.diag().diag()
    most = shared.max()
    if most < 2:
        return None
    one, other = (shared == most).nonzero().T  # groups
    groups = (near[:, one] * near[:, other]).bool()  # b groups
    return groups[:, (groups * surest[:, None]).amax(dim=0).argmax()]
