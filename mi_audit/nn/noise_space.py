"""The latent space of a generator that was trained on standard normal numbers."""

from jaxtyping import Float
from torch import Tensor, nn

from mi_audit.core.prior import CriticPrior, LatentSpace, TunablePrior
from mi_audit.core.types import Images, Latents
from mi_audit.nn.gan import Networks


class NoiseSpace(LatentSpace):
    """Standard normal vectors; the generator was trained on all of them, so nothing needs projecting."""

    def __init__(self, generator: nn.Module, width: int) -> None:
        self.width = width
        self._generator = generator

    def draw(self, noise: Float[Tensor, "b width"]) -> Latents:
        return noise

    def decode(self, latents: Latents) -> Images:
        return self._generator(latents)

    def project(self, latents: Latents) -> Latents:
        return latents


class NoisePrior(CriticPrior, TunablePrior):
    """A generator and its critic, frozen; a subclass says what the critic's answer tells about `realism`."""

    def __init__(self, networks: Networks) -> None:
        self.z = NoiseSpace(networks.generator, networks.latent)
        self.generator, self.critic = networks.generator, networks.critic

    @property
    def decoder_weights(self) -> tuple[Tensor, ...]:
        return tuple(self.generator.parameters())
