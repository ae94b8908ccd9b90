"""StyleGAN2: styles of a generator trained on the public images, or of a published one that was imported."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError, DataError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import LatentSpace, Painting, PriorRecipe, Progress, StylePrior, StyleSpace, TunablePrior
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Latents
from mi_audit.nn.adversarial import NonSaturatingR1
from mi_audit.nn.constants import beside
from mi_audit.nn.gan import Networks
from mi_audit.nn.precision import Precision
from mi_audit.nn.stylegan2 import Generator, Shape
from mi_audit.nn.stylegan2_critic import Critic
from mi_audit.nn.stylegan2_frozen import SwiftPainter
from mi_audit.nn.stylegan2_objective import PathLengthR1
from mi_audit.store.weights import read_facts, read_weights
from mi_audit.train import gan
from mi_audit.train.seeding import seeded

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
DECAY = 0.5 ** (32 / 10_000)  # of the averaged weights, per step: StyleGAN2-ADA's for batches of any size
STANDARD_IMAGES = 5_000_000  # shown to the critic; published: 25 million


@dataclass(frozen=True, kw_only=True)
class StyleGAN2(PriorRecipe):
    """Train StyleGAN2 on the public images, or take the weights of an imported one.

    `standard` has the published widths and objective, with distortions that come as the critic overfits. `quick` is a
    narrow network for two cores that distorts every image; no paper reports it. Neither knows classes or asks the
    target. With `weights` nothing is trained: whatever that generator makes is cropped, resized and brought to the
    channels of the public images.

    Attributes:
        profile: `quick` or `standard`.
        weights: File that `mi-audit import` wrote; None trains.
        crop: Side of the middle of each image that the prior shows, as a share; for generators of faces with much
            around them, such as FFHQ's, where attacks were published with 0.78.
        steps: Critic updates; None takes 3000 (1500 at 32 pixels), or for `standard` five million images.
        batch_size: Public images per step.
        lr: Adam's learning rate for both networks.
        gamma: Weight of R1; None takes what StyleGAN2-ADA takes at that size, at least 0.1 for `quick`.
        path_weight: Weight of the path length; None takes 2, or nothing for `quick`.
        adapt: Aim of the adaptive distortions of `standard`.
        flips: Mirror every second public image; right for faces, wrong for digits, letters and most medical pictures.
        precision: None takes single precision, or for `quick` bfloat16 where the hardware has it.

    Raises:
        ConfigError: A number is out of range, or the images are not of 32 to 1024 pixels.
    """

    paper: ClassVar = Paper(
        title="Analyzing and Improving the Image Quality of StyleGAN",
        authors="Karras et al.",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/1912.04958",
    )
    smoke: ClassVar = {"profile": "quick", "steps": 2, "batch_size": 4}
    version: ClassVar = 2
    deviations: ClassVar = (
        "Distortions are shifts and brightness, which suit grey and small pictures alike; the published pipeline has "
        "eighteen, geometric and of colour.",
        "A penalty that is due is added to the loss of its step. The published code updates for it apart, with step "
        "size and betas of Adam corrected for how seldom it is due.",
        "The averaged weights forget faster at first by the number of updates so far, as those of the other priors do; "
        "the published ramp-up goes by the number of images.",
        "Five million images are shown to the critic, a fifth of the published 25 million.",
        "`quick` is a narrow network without path length that distorts every image; no paper reports it.",
    )

    profile: Literal["quick", "standard"] = "standard"
    weights: str | None = None
    crop: float = 1.0
    steps: int | None = None
    batch_size: int = 32
    lr: float = 0.0025
    gamma: float | None = None
    path_weight: float | None = None
    adapt: float = 0.6
    flips: bool = False
    precision: Precision | None = None

    def __post_init__(self) -> None:
        require_finite(self)
        numbers = (self.steps, self.batch_size, self.lr, self.gamma)
        if any(number is not None and number <= 0 for number in numbers) or (self.path_weight or 0) < 0:
            raise ConfigError(
                f"expected steps, batch_size, lr and gamma above 0 and path_weight >= 0, got {self}; "
                "correct the settings of stylegan2"
            )
        if not 0 < self.crop <= 1:
            raise ConfigError(f"expected 0 < crop <= 1, got {self.crop}; 1 shows all of every image")

    def files(self) -> tuple[Path, ...]:
        return (Path(self.weights),) if self.weights else ()

    def fit(
        self,
        public: Dataset,
        target: WhiteBoxTarget | None,
        seed: int,
        device: str,
        on_step: Progress,
        checkpoint: Path | None = None,
    ) -> dict[str, Tensor]:
        del target
        if self.weights:
            weights, _ = read_weights(Path(self.weights))
            if "mapping.average" not in weights:
                raise DataError(f"expected a generator, got {self.weights}; make it with `mi-audit import FILE.pkl`")
            return weights
        shape = self._shape(public.size, public.channels)
        with seeded("cpu", seed, "networks"):
            networks = Networks(Generator(shape), Critic(shape), shape.latent)
        settings = self._settings(public)
        fitted = gan.fit(networks, public, settings, seed=seed, device=device, on_step=on_step, checkpoint=checkpoint)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in fitted.generator.state_dict().items()}

    def restore(self, weights: Mapping[str, Tensor], size: int, channels: int, device: str) -> StylePrior:
        with torch.device("meta"):
            generator = Generator(Shape.of(weights))
        generator.load_state_dict(dict(weights), assign=True)
        generator = generator.to(device).eval().requires_grad_(False)
        return _StyleGAN2Prior(generator, size, channels, self.crop)

    def describe(self, size: int, channels: int) -> dict[str, object]:
        facts: dict[str, object] = {"size": size, "channels": channels, "crop": self.crop, "paper": str(self.paper)}
        if self.weights:
            return facts | {"weights": self.weights, **_origin(Path(self.weights))}
        shape = self._shape(size, channels)
        with torch.device("meta"):
            generator = Generator(shape)
        light = self.profile == "quick"
        return facts | {
            "profile": self.profile,
            "recipe": "light, not published" if light else "published, on a fifth of the published number of images",
            "objective": (PathLengthR1 if self._path_weight() else NonSaturatingR1).name,
            "steps": self.planned_steps(0, size, channels),
            "batch_size": self.batch_size,
            "flips": self.flips,
            "distortions": "always" if light else f"adaptive, aim {self.adapt}",
            "latent": shape.latent,
            "generator_parameters": sum(weight.numel() for weight in generator.parameters()),
        }

    def planned_steps(self, images: int, size: int, channels: int) -> int:
        del images, channels
        if self.weights:
            return 0
        if self.profile == "quick":
            return self.steps or (1500 if size <= 32 else 3000)
        return self.steps or STANDARD_IMAGES // self.batch_size

    def shortened(self, steps: int) -> "StyleGAN2":
        return replace(self, steps=steps)

    def _shape(self, size: int, channels: int) -> Shape:
        if self.profile == "quick":
            return Shape.tapering(size, channels, base=1024, widest=64, dims=64, depth=2)
        return Shape.tapering(size, channels, base=32768 if size >= 512 else 16384, depth=2)

    def _path_weight(self) -> float:
        return (0.0 if self.profile == "quick" else 2.0) if self.path_weight is None else self.path_weight

    def _settings(self, public: Dataset) -> gan.GanSettings:
        light = self.profile == "quick"
        # The published gamma is for images in [-1, 1], whose slopes are half as steep as those of images in [0, 1].
        published = 2e-4 * public.size**2 / self.batch_size / 4
        gamma = self.gamma or (max(0.1, published) if light else published)
        r1 = NonSaturatingR1(gamma=gamma, images=self.batch_size)
        weight = self._path_weight()
        return gan.GanSettings(
            objective=PathLengthR1(path_weight=weight, gamma=r1.gamma, images=r1.images) if weight else r1,
            steps=self.planned_steps(len(public), public.size, public.channels),
            batch_size=self.batch_size,
            lr=self.lr,
            betas=(0.0, 0.99),
            average=0.995 if light else DECAY,
            flips=self.flips,
            shift=0.1,
            brightness=0.2,
            chance=1.0 if light else 0.0,
            adapt=None if light else self.adapt,
            precision=self.precision or ("auto" if light else "32"),
        )


class _Styles(StyleSpace):
    """What the mapping network makes of normal latents."""

    def __init__(self, prior: "_StyleGAN2Prior", generator: Generator) -> None:
        self.width, self.mean = generator.shape.latent, generator.mapping.average
        self._prior, self._generator = prior, generator

    def draw(self, noise: Float[Tensor, "b width"]) -> Latents:
        return self._generator.mapping(noise)

    def decode(self, latents: Latents) -> Images:
        return self._prior.show(self._prior.paint(latents, None, range(self._prior.blocks)))

    def project(self, latents: Latents) -> Latents:
        return latents


class _Noise(LatentSpace):
    """Standard normal latents; the generator was trained on all of them, so nothing needs projecting."""

    def __init__(self, styles: _Styles) -> None:
        self.width, self._styles = styles.width, styles

    def draw(self, noise: Float[Tensor, "b width"]) -> Latents:
        return noise

    def decode(self, latents: Latents) -> Images:
        return self._styles.decode(self._styles.draw(latents))

    def project(self, latents: Latents) -> Latents:
        return latents


class _StyleGAN2Prior(StylePrior, TunablePrior):
    """A frozen generator whose images are brought to the size and the channels of the public ones.

    While its weights take gradients it paints itself, else a copy for searches does, made anew when they have changed.
    """

    def __init__(self, generator: Generator, size: int, channels: int, crop: float) -> None:
        self.w = _Styles(self, generator)
        self.z = _Noise(self.w)
        self.blocks = len(generator.blocks)
        self._generator, self._size, self._channels, self._crop = generator, size, channels, crop
        self._swift = SwiftPainter(generator)

    @property
    def decoder_weights(self) -> tuple[Tensor, ...]:
        return tuple(self._generator.blocks.parameters())

    def paint(self, styles: Latents, painting: Painting | None, blocks: range) -> Painting:
        return self._swift.paint(self._generator.layered(styles), painting, blocks)

    def show(self, painting: Painting) -> Images:
        images = (painting.colours * 0.5 + 0.5).clamp(0, 1)
        border = round((1 - self._crop) / 2 * images.shape[3])
        images = images[:, :, border : images.shape[2] - border, border : images.shape[3] - border]
        if images.shape[3] != self._size:
            images = F.interpolate(images.float(), size=(self._size, self._size), mode="bilinear", antialias=True)
        if images.shape[1] == self._channels:
            return images
        if self._channels == 3:
            return images.expand(-1, 3, -1, -1)
        return torch.einsum("bchw,c->bhw", images, beside(images, LUMINANCE))[:, None]


def _origin(file: Path) -> dict[str, Any]:
    """What `mi-audit import` wrote down about the weights."""
    return {f"weights_{name}": value for name, value in read_facts(file).items()}
