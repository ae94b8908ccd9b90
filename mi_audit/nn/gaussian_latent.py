"""A Gaussian over latents as one row of numbers, so that the shared search can optimise a distribution."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.random import Streams
from mi_audit.core.types import Labels, Latents

Gaussians = Float[Tensor, "b twice_width"]


@dataclass(frozen=True, slots=True)
class GaussianLatent:
    """A diagonal Gaussian per row: `width` means, then `width` logarithms of the variance.

    The variance is the square of the deviation, so its logarithm is twice that of the deviation. Adam's steps depend on
    which of the two is optimised; it is the variance here because KEDMI's step size was published for it.

    Attributes:
        width: Numbers of one latent.
        bound: Half the side of the box that every draw is clipped to; None leaves draws as they are.
        name: Name of the random draw.
    """

    width: int
    bound: float | None = None
    name: str = "gaussian"

    def start(self, mu0: Latents, sigma0: float) -> Gaussians:
        """Gaussians around `mu0` [b, width] with the deviation `sigma0` in every direction."""
        log_variance = 2 * torch.tensor(sigma0).log()
        return torch.cat([mu0, torch.full_like(mu0, float(log_variance))], dim=1)

    def sample(self, latents: Gaussians, streams: Streams, step: int | Labels) -> Latents:
        """One latent of every Gaussian, `mean + deviation * noise`; differentiable in both (Kingma & Welling, 2014)."""
        noise = streams.normal(self.name, self.width, step=step)
        drawn = self.mean(latents) + self.deviation(latents) * noise
        return drawn if self.bound is None else drawn.clamp(-self.bound, self.bound)

    def mean(self, latents: Gaussians) -> Latents:
        """The centre of every Gaussian."""
        return latents[:, : self.width]

    def deviation(self, latents: Gaussians) -> Latents:
        """The standard deviation of every Gaussian, direction by direction."""
        return (latents[:, self.width :] / 2).exp()
