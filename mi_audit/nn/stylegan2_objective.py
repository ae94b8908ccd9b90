"""What StyleGAN2's two networks minimise: the non-saturating loss, lazy R1, and a regulariser of the generator."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from mi_audit.core.types import Latents, Scalar
from mi_audit.nn.adversarial import NonSaturatingR1
from mi_audit.nn.stylegan2 import Generator


@dataclass(frozen=True, kw_only=True)
class PathLengthR1(NonSaturatingR1):
    """Lazy R1 for the critic, lazy path length for the generator (Karras et al., CVPR 2020, equation 4).

    Attributes:
        path_weight: Weight of `(|J^T y| - a)^2`, where J is the Jacobian of the image in its styles, y a random image
            of unit variance over the root of its pixels, and a the running mean of that length.
        path_every: Steps between two penalties; each is multiplied by it.
        path_share: Of the batch, the part that it is computed on: one in so many.
        path_decay: Share of the running mean that a new length takes.
    """

    name: ClassVar = "non-saturating with lazy R1 and path length"

    path_weight: float = 2.0
    path_every: int = 4
    path_share: int = 2
    path_decay: float = 0.01

    def generator_penalty(self, generator: nn.Module, latents: Latents, step: int) -> Scalar | None:
        assert isinstance(generator, Generator)
        if step % self.path_every:
            return None
        styles = generator.styles(latents[: max(1, len(latents) // self.path_share)])
        image = generator.paint(styles).colours
        noise = torch.randn_like(image) / math.sqrt(image.shape[2] * image.shape[3])
        (slopes,) = torch.autograd.grad((image * noise).sum(), styles, create_graph=True)
        lengths = slopes.square().sum(dim=2).mean(dim=1).sqrt()
        generator.length.lerp_(lengths.detach().mean(), self.path_decay)
        return self.path_every * self.path_weight * (lengths - generator.length).square().mean()
