"""No prior: the latents are the pixels, so that an attack shows what the target alone gives away."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.dataset import Dataset
from mi_audit.core.paper import Paper
from mi_audit.core.prior import LatentSpace, Prior, PriorRecipe, Progress
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Latents
from mi_audit.nn.pixel_space import CENTRE, SPREAD


@dataclass(frozen=True, kw_only=True)
class Pixels(PriorRecipe):
    """Fits nothing and looks at no image: one latent number per pixel value, in units of 0.225 around grey.

    A random sample is noise, and any image can be reached; nothing makes it look like one.
    """

    paper: ClassVar = Paper(
        title="Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion",
        authors="Yin et al.",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/1912.08795",
    )
    smoke: ClassVar = {}

    def fit(
        self,
        public: Dataset,
        target: WhiteBoxTarget | None,
        seed: int,
        device: str,
        on_step: Progress,
        checkpoint: Path | None = None,
    ) -> dict[str, Tensor]:
        """The two constants that turn latents into pixels; takes no notice of any argument."""
        del public, target, seed, device, on_step, checkpoint
        return {"centre": torch.tensor(CENTRE), "spread": torch.tensor(SPREAD)}

    def restore(self, weights: Mapping[str, Tensor], size: int, channels: int, device: str) -> Prior:
        del device
        return _PixelPrior((channels, size, size), float(weights["centre"]), float(weights["spread"]))

    def describe(self, size: int, channels: int) -> dict[str, object]:
        return {
            "recipe": "no prior: latents are pixels, no public image is used",
            "size": size,
            "channels": channels,
            "latent": channels * size * size,
            "centre": CENTRE,
            "spread": SPREAD,
        }

    def planned_steps(self, images: int, size: int, channels: int) -> int:
        del images, size, channels
        return 0

    def shortened(self, steps: int) -> "Pixels":
        del steps
        return self


class _PixelSpace(LatentSpace):
    """Pixel values in units around grey, kept in the range that a picture can have."""

    def __init__(self, shape: tuple[int, int, int], centre: float, spread: float) -> None:
        self.width = prod(shape)
        self._shape, self._centre, self._spread = shape, centre, spread

    def draw(self, noise: Float[Tensor, "b width"]) -> Latents:
        return self.project(noise.view(-1, *self._shape))

    def decode(self, latents: Latents) -> Images:
        return self._centre + self._spread * latents

    def project(self, latents: Latents) -> Latents:
        return latents.clamp(-self._centre / self._spread, (1 - self._centre) / self._spread)


class _PixelPrior(Prior):
    def __init__(self, shape: tuple[int, int, int], centre: float, spread: float) -> None:
        self.z = _PixelSpace(shape, centre, spread)
