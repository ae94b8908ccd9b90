"""Update rules that treat every row alone, so that latents which share a batch never interact."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_audit.core.types import Latents

State = tuple[Tensor, ...]


class Optimiser(ABC):
    """Settings of an update rule; its memory is handed in and out."""

    @abstractmethod
    def start(self, latents: Latents) -> State:
        """The memory before the first step."""

    @abstractmethod
    def update(self, latents: Latents, gradient: Latents, state: State, step: int) -> tuple[Latents, State]:
        """The latents and the memory after step number `step`, counted from 0."""


@dataclass(frozen=True, slots=True)
class Nesterov(Optimiser):
    """Momentum that looks ahead: `v' = m v - lr g`, `z' = z - m v + (1 + m) v'`.

    Attributes:
        lr: Step size, in latent units per unit of gradient.
        momentum: Share m of the velocity that is kept.
    """

    lr: float
    momentum: float = 0.9

    def start(self, latents: Latents) -> State:
        return (torch.zeros_like(latents),)

    def update(self, latents: Latents, gradient: Latents, state: State, step: int) -> tuple[Latents, State]:
        del step
        (old,) = state
        new = self.momentum * old - self.lr * gradient
        return latents - self.momentum * old + (1 + self.momentum) * new, (new,)


@dataclass(frozen=True, slots=True)
class Adam(Optimiser):
    """Steps of about `lr` whatever the scale of the gradient (Kingma & Ba, ICLR 2015, Alg. 1).

    Attributes:
        lr: Step size, in latent units.
        betas: Decay of the mean and of the mean square of the gradient.
        eps: Keeps the division finite.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def start(self, latents: Latents) -> State:
        return torch.zeros_like(latents), torch.zeros_like(latents)

    def update(self, latents: Latents, gradient: Latents, state: State, step: int) -> tuple[Latents, State]:
        (first, second), (b1, b2) = state, self.betas
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient.square()
        mean, square = first / (1 - b1 ** (step + 1)), second / (1 - b2 ** (step + 1))
        return latents - self.lr * mean / (square.sqrt() + self.eps), (first, second)
