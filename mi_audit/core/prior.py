"""What the attacker knows ahead of an attack: a generator with its latent spaces, and surrogates of the target."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, TypeVar

from jaxtyping import Float
from torch import Tensor

from mi_audit.core.dataset import Dataset
from mi_audit.core.paper import Paper
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Latents, Logits, PerSample

Progress = Callable[[str, int, int], None]


class LatentSpace(ABC):
    """A space of vectors that a generator turns into images.

    Attributes:
        width: Number of standard normal numbers that one latent is drawn from.
    """

    width: int

    @abstractmethod
    def draw(self, noise: Float[Tensor, "b width"]) -> Latents:
        """The latents that standard normal noise maps to."""

    @abstractmethod
    def decode(self, latents: Latents) -> Images:
        """Differentiable map from latents to images in [0, 1]."""

    @abstractmethod
    def project(self, latents: Latents) -> Latents:
        """The nearest latents the generator was trained on: the identity, a box, or a ball."""


class Prior(ABC):
    """A generator that the attacker fitted on public images.

    Attributes:
        z: The space it was trained on.
    """

    z: LatentSpace

    @property
    def search(self) -> LatentSpace:
        """The space attacks optimise in: the one with the smoothest decoder."""
        return self.z


class StyleSpace(LatentSpace):
    """The styles that a mapping network makes of normal latents.

    Attributes:
        mean: The average style.
    """

    mean: Float[Tensor, " style"]

    def truncated(self, styles: Latents, share: float) -> Latents:
        """Styles at `share` of their distance from the average: less varied, more typical images."""
        return self.mean + share * (styles - self.mean)


class Painting(NamedTuple):
    """An image between two blocks of a generator.

    Attributes:
        features: What the next block takes in.
        colours: The sum of the colours that the blocks so far added, as many pixels wide as the features.
    """

    features: Float[Tensor, "_ _ _ _"]
    colours: Float[Tensor, "_ _ _ _"]


class StylePrior(Prior):
    """A generator with a disentangled style space, such as StyleGAN2, whose blocks can be run one by one.

    `show(paint(styles, None, range(blocks)))` is `w.decode(styles)`.

    Attributes:
        w: The space of styles.
        blocks: Number of blocks, one per resolution.
    """

    w: StyleSpace
    blocks: int

    @property
    def search(self) -> LatentSpace:
        return self.w

    @abstractmethod
    def paint(self, styles: Latents, painting: Painting | None, blocks: range) -> Painting:
        """Run consecutive `blocks` on the painting that the blocks before them left; None before the first one."""

    @abstractmethod
    def show(self, painting: Painting) -> Images:
        """The image in [0, 1] that the last block left; differentiable like `paint`."""


class CriticPrior(Prior):
    """A generator that comes with the critic it was trained against."""

    @abstractmethod
    def realism(self, images: Images) -> PerSample:
        """Critic score: larger is more like the public images."""


class ConditionalPrior(Prior):
    """A generator of images of a given class."""

    @abstractmethod
    def decode_as(self, latents: Latents, labels: Labels) -> Images: ...


class TunablePrior(Prior):
    """A generator whose weights may be trained further, on a copy."""

    @property
    @abstractmethod
    def decoder_weights(self) -> tuple[Tensor, ...]:
        """The weights between the space that attacks search and the image: frozen, and moved in place by training."""

    def copied(self) -> "TunablePrior":
        """The same generator with weights of its own."""
        return copy.deepcopy(self)


@dataclass(frozen=True, slots=True, eq=False)
class Surrogates:
    """Classifiers that the attacker trained to answer like the target, from its answers to public images.

    Attributes:
        networks: Map images in [0, 1] to logits over the classes of the target, differentiable, frozen, in eval mode.
        feature_mean, feature_std: Mean and standard deviation, per dimension, of the target's features over those
            public images; for attacks that hold the features of a reconstruction near them.
    """

    networks: tuple[Callable[[Images], Logits], ...]
    feature_mean: Float[Tensor, " d"]
    feature_std: Float[Tensor, " d"]


Inner = TypeVar("Inner", bound=Prior)


class AssistedPrior(Prior, Generic[Inner]):
    """A prior together with surrogates of the target; `AssistedPrior[CriticPrior]` says what prior is needed.

    Attributes:
        prior: The generator, with whatever its kind knows beyond decoding.
        surrogates: What was distilled from the target.
    """

    def __init__(self, prior: Inner, surrogates: Surrogates) -> None:
        self.z = prior.z
        self.prior = prior
        self.surrogates = surrogates

    @property
    def search(self) -> LatentSpace:
        return self.prior.search


class PublicRecipe(ABC):
    """A frozen dataclass of hyper-parameters for what an attacker fits on public images ahead of an attack.

    It is a `PriorRecipe` or a `SurrogateRecipe`. `fit` and `restore` agree on the tensors between them.

    Attributes:
        paper: The publication of the method.
        smoke: The smallest settings that still work, for tests.
        version: Raised whenever the same settings would fit other weights; part of the cache key.
        needs_target: True when fitting asks the target, so that every target gets weights of its own.
    """

    paper: ClassVar[Paper]
    smoke: ClassVar[Mapping[str, object]]
    version: ClassVar[int] = 1
    needs_target: ClassVar[bool] = False

    @abstractmethod
    def fit(
        self,
        public: Dataset,
        target: WhiteBoxTarget | None,
        seed: int,
        device: str,
        on_step: Progress,
        checkpoint: Path | None = None,
    ) -> dict[str, Tensor]:
        """Train on public images and return the weights to keep; resumes from `checkpoint` when it exists.

        Raises:
            Diverged: A loss became NaN or infinite.
        """

    @abstractmethod
    def restore(self, weights: Mapping[str, Tensor], size: int, channels: int, device: str) -> Prior | Surrogates:
        """What `fit` trained on `size` x `size` images, from its weights."""

    @abstractmethod
    def describe(self, size: int, channels: int) -> dict[str, object]:
        """What a report says about it: objective, steps, parameters, published or not."""

    def found(self, weights: Mapping[str, Tensor]) -> dict[str, object]:
        """What fitting itself measured, read from its weights, for the report; nothing by default."""
        del weights
        return {}

    def files(self) -> tuple[Path, ...]:
        """Files that `fit` reads besides the public images; the cache key depends on what they hold."""
        return ()

    @abstractmethod
    def planned_steps(self, images: int, size: int, channels: int) -> int:
        """Training steps that `fit` takes on `images` public images, for time estimates."""

    @abstractmethod
    def shortened(self, steps: int) -> "PublicRecipe":
        """The same recipe cut to `steps` training steps, for a probe of its speed."""


class PriorRecipe(PublicRecipe):
    """Fits a prior."""

    @abstractmethod
    def restore(self, weights: Mapping[str, Tensor], size: int, channels: int, device: str) -> Prior: ...


class SurrogateRecipe(PublicRecipe):
    """Distils surrogates from the target, so that every target gets its own."""

    needs_target = True

    @abstractmethod
    def restore(self, weights: Mapping[str, Tensor], size: int, channels: int, device: str) -> Surrogates: ...
