"""A normalising flow whose weights are one row of numbers, so that the shared search optimises one flow per class."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mi_audit.core.random import Streams
from mi_audit.core.types import PerSample

Rows = Float[Tensor, "b size"]
Draws = Float[Tensor, "b s width"]

START = 0.05  # deviation of the hidden weights, as in Glow; all others start at zero, and so the flow at the identity


@dataclass(frozen=True, slots=True)
class Flow:
    """Glow for vectors, in the direction from noise to latents (Kingma & Dhariwal, NeurIPS 2018).

    At each scale some steps move the second half of the vector by what a small network makes of the first half,
    shuffle the directions, and rescale and shift each of them. The first scale knows a part of the directions only;
    each next one adds as many, whose mean and deviation are linear in those before, until all are there.

    Attributes:
        width: Numbers of one latent, at least 2.
        scales: Scales, each twice as wide as the one before; those that would be narrower than 2 are left out.
        steps: Steps per scale.
        hidden: Units of each of the two hidden layers of the small networks.
    """

    width: int
    scales: int = 3
    steps: int = 10
    hidden: int = 100

    @property
    def size(self) -> int:
        """Weights of one flow."""
        return sum(_count(shape) for shape, _ in self._layout())

    def start(self, streams: Streams) -> Rows:
        """One flow per stream that maps noise to itself."""
        deviations = torch.cat([torch.full((_count(shape),), deviation) for shape, deviation in self._layout()])
        return streams.normal("flow", self.size) * deviations.to(streams.keys.device)

    def draw(self, rows: Rows, noise: Draws) -> tuple[Draws, Float[Tensor, "b s"]]:
        """What each flow makes of its own standard normal `noise`, and the logarithm of how much it stretched it."""
        with torch.autocast(rows.device.type, enabled=False):  # in half precision densities would not add up
            weights, widths = self._weights(rows.float()), self._widths()
            found, stretched = noise[..., : widths[0]].float(), torch.zeros_like(noise[..., 0])
            for scale, width in enumerate(widths):
                if scale:
                    mean, log_deviation = (found @ next(weights) + next(weights)).chunk(2, dim=2)
                    added = noise[..., found.shape[2] : width] * log_deviation.exp() + mean
                    found, stretched = torch.cat([found, added], dim=2), stretched + log_deviation.sum(dim=2)
                for step in range(self.steps):
                    found = _coupled(found, weights)[..., _shuffle(width, step, str(found.device))]
                    log_stretch = next(weights)
                    found = found * log_stretch.exp() + next(weights)
                    stretched = stretched + log_stretch.sum(dim=2)
        return found, stretched

    def divergence(self, rows: Rows, noise: Draws) -> PerSample:
        """Kullback-Leibler divergence from the standard normal distribution, estimated on `noise`, per flow.

        With latents z of noise e it is the mean of `log q(z) - log p(z) = (|z|^2 - |e|^2) / 2 - log |dz / de|`.
        """
        found, stretched = self.draw(rows, noise)
        return ((found.square().sum(dim=2) - noise.square().sum(dim=2)) / 2 - stretched).mean(dim=1)

    def _widths(self) -> list[int]:
        return [width for scale in reversed(range(self.scales)) if (width := self.width >> scale) >= 2]

    def _layout(self) -> Iterator[tuple[tuple[int, int], float]]:
        """Shape of every part of a row, in order of use, and the deviation it starts with."""
        before = 0
        for width in self._widths():
            if before:
                yield (before, 2 * (width - before)), 0.0
                yield (1, 2 * (width - before)), 0.0
            first, second = width // 2, width - width // 2
            for _ in range(self.steps):
                for inputs, outputs, deviation in (
                    (first, self.hidden, START), (self.hidden, self.hidden, START), (self.hidden, second, 0.0),
                ):  # fmt: skip
                    yield (inputs, outputs), deviation
                    yield (1, outputs), 0.0
                yield (1, width), 0.0
                yield (1, width), 0.0
            before = width

    def _weights(self, rows: Rows) -> Iterator[Float[Tensor, "b i o"]]:
        """The parts of every row, in order of use."""
        at = 0
        for shape, _ in self._layout():
            yield rows[:, at : at + _count(shape)].view(-1, *shape)
            at += _count(shape)


def _coupled(found: Draws, weights: Iterator[Tensor]) -> Draws:
    """The second half moved by a network of the first; this stretches nothing."""
    first, second = found.split([found.shape[2] // 2, found.shape[2] - found.shape[2] // 2], dim=2)
    hidden = F.elu(first @ next(weights) + next(weights))
    hidden = F.elu(hidden @ next(weights) + next(weights))
    return torch.cat([first, second + hidden @ next(weights) + next(weights)], dim=2)


@cache
def _shuffle(width: int, number: int, device: str) -> Int64[Tensor, " width"]:
    """A fixed order of the directions; the same for every flow, so that rows can share a batch."""
    return torch.randperm(width, generator=torch.Generator().manual_seed(number)).to(device)


def _count(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]
