"""Distributions over latents as rows of numbers, with what they cost: how far they are from the standard normal one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.random import Streams
from mi_audit.core.types import PerSample
from mi_audit.nn.flow import Draws, Flow, Rows
from mi_audit.nn.gaussian_latent import GaussianLatent

Vectors = Float[Tensor, "n width"]


class Posterior(ABC):
    """A family of distributions over vectors of standard normal numbers; one row of numbers picks a member."""

    @abstractmethod
    def start(self, streams: Streams) -> Rows:
        """A row per stream that stands for the standard normal distribution itself."""

    @abstractmethod
    def sample(self, rows: Rows, streams: Streams, step: int, count: int) -> Vectors:
        """`count` vectors of every distribution, those of a row together; differentiable in the rows."""

    @abstractmethod
    def divergence(self, rows: Rows, streams: Streams, step: int, count: int) -> PerSample:
        """Kullback-Leibler divergence from the standard normal distribution, summed over directions.

        Where it has no formula it is estimated on the vectors that `sample` gives for the same arguments.
        """


@dataclass(frozen=True, slots=True)
class GaussianPosterior(Posterior):
    """A Gaussian with a mean and a variance for every direction.

    Attributes:
        width: Numbers of one vector.
    """

    width: int

    def start(self, streams: Streams) -> Rows:
        return self._latent().start(torch.zeros(len(streams), self.width, device=streams.keys.device), 1.0)

    def sample(self, rows: Rows, streams: Streams, step: int, count: int) -> Vectors:
        return self._latent().sample(rows.repeat_interleave(count, dim=0), streams.branches(count), step)

    def divergence(self, rows: Rows, streams: Streams, step: int, count: int) -> PerSample:
        """`sum (mean^2 + variance - 1 - log variance) / 2`: exact, whatever was drawn."""
        del streams, step, count
        variance = self._latent().deviation(rows).square()
        return (self._latent().mean(rows).square() + variance - 1 - variance.log()).sum(dim=1) / 2

    def _latent(self) -> GaussianLatent:
        return GaussianLatent(self.width)


@dataclass(frozen=True, slots=True)
class FlowPosterior(Posterior):
    """A normalising flow, which can bend and split.

    Attributes:
        flow: Its shape.
    """

    flow: Flow

    def start(self, streams: Streams) -> Rows:
        return self.flow.start(streams)

    def sample(self, rows: Rows, streams: Streams, step: int, count: int) -> Vectors:
        return self.flow.draw(rows, self._noise(streams, step, count))[0].flatten(0, 1)

    def divergence(self, rows: Rows, streams: Streams, step: int, count: int) -> PerSample:
        return self.flow.divergence(rows, self._noise(streams, step, count))

    def _noise(self, streams: Streams, step: int, count: int) -> Draws:
        return streams.normal("flow noise", count, self.flow.width, step=step)
