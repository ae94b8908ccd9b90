"""Update rules that treat every row alone, so that latents which share a batch never interact."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mi_audit.core.types import Latents

State = tuple[Tensor, ...]


class Optimiser(ABC):
    """Settings of an update rule; its memory is handed in and out.

    Attributes:
        scheduled: Whether the sizes of the steps are planned over a whole search, so that all of it has to be gone.
    """

    scheduled: ClassVar[bool] = False

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
class Momentum(Optimiser):
    """Gradient steps that keep some of their speed: `v' = m v - lr g`, `z' = z + v'`.

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
        velocity = self.momentum * state[0] - self.lr * gradient
        return latents + velocity, (velocity,)


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


@dataclass(frozen=True, slots=True)
class RampedAdam(Optimiser):
    """Adam whose step size grows linearly at first and falls to zero by a cosine at last (StyleGAN2's projector).

    Attributes:
        lr: Largest step size.
        steps: Steps in all.
        up, down: Shares of the steps in which it grows and falls.
        betas: Of Adam.
    """

    scheduled: ClassVar[bool] = True
    lr: float
    steps: int
    up: float = 0.05
    down: float = 0.25
    betas: tuple[float, float] = (0.9, 0.999)

    def start(self, latents: Latents) -> State:
        return Adam(self.lr, self.betas).start(latents)

    def update(self, latents: Latents, gradient: Latents, state: State, step: int) -> tuple[Latents, State]:
        return Adam(self.lr * self.share(step), self.betas).update(latents, gradient, state, step)

    def share(self, step: int) -> float:
        """The step size of step number `step` over the largest one; the first is 0 unless nothing is ramped up."""
        done = step / self.steps
        falling = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / self.down)) if self.down else 1.0
        return falling * (min(1.0, done / self.up) if self.up else 1.0)


@dataclass(frozen=True, slots=True)
class WarmCosine(Optimiser):
    """Another rule whose steps grow linearly at first and then shrink to nothing along half a cosine.

    Attributes:
        rule: The rule; its steps have to be proportional to its step size.
        steps: Steps of the whole search.
        warm_up: Steps until the full size is reached, fewer than `steps`.
    """

    scheduled: ClassVar[bool] = True
    rule: Optimiser
    steps: int
    warm_up: int = 0

    def start(self, latents: Latents) -> State:
        return self.rule.start(latents)

    def update(self, latents: Latents, gradient: Latents, state: State, step: int) -> tuple[Latents, State]:
        moved, state = self.rule.update(latents, gradient, state, step)
        return latents + self.share(step) * (moved - latents), state

    def share(self, step: int) -> float:
        """What is taken of the step number `step`."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        return (1 + math.cos(math.pi * (step - self.warm_up) / (self.steps - self.warm_up))) / 2
