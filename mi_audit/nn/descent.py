"""The one gradient search over latents that the white-box attacks share.

A method fills the slots: prior x latent x objective x views x optimiser x constraint. Where the search starts and what
is kept of it (init and selection) is up to the method, before and after.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.errors import Diverged
from mi_audit.core.random import Streams
from mi_audit.core.reconstruction import Curve
from mi_audit.core.run import Run
from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.optimisers import Optimiser

REPORT_EVERY = 5  # steps between two progress reports inside a chunk
CURVE_POINTS = 100

View = Callable[[Images, Streams, int], Images]


class Descended(NamedTuple):
    """Where the latents ended, and the mean identity loss on the way."""

    latents: Latents
    curve: Curve


class _Chunk(NamedTuple):
    """The end of one chunk: `losses` are summed over its rows, step by step."""

    latents: Latents
    losses: Float[Tensor, " steps"]


def _as_is(latents: Latents) -> Latents:
    return latents


def _untied(latents: Latents, start: Latents) -> Latents:
    del start
    return latents


def _the_latent_itself(latents: Latents, streams: Streams, step: int) -> Latents:
    del streams, step
    return latents


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """Minimise `identity_weight * identity - realism` over latents, every row for itself.

    The loss of a batch is the sum over its rows, so that neither the batch size nor the neighbours of a latent change
    its path. Only latents receive gradients. Losses stay on the device until a chunk of rows has finished.

    Attributes:
        stage: Name of this search in progress, curves and errors.
        steps: Gradient steps per latent.
        decode: The prior: images of latents, given their labels.
        identity: Per-image loss against the label; with several views, their mean is taken.
        optimiser: Update rule.
        realism: Per-image score of a critic to maximise; None when there is no critic.
        identity_weight: Weight of `identity`.
        reference_batch: Batch size that the published loss is a mean over; scales the loss of each row.
        views: What the identity loss sees of an image; empty means the image itself.
        sample: Latents to decode at a step, for methods that optimise a distribution; default: the latents themselves.
        constraint: Applied to the latents after every step.
        tether: Applied after it to the latents and to where they started.
    """

    stage: str
    steps: int
    decode: Callable[[Latents, Labels], Images]
    identity: Callable[[Images, Labels], PerSample]
    optimiser: Optimiser
    realism: Callable[[Images], PerSample] | None = None
    identity_weight: float = 1.0
    reference_batch: int = 1
    views: tuple[View, ...] = ()
    sample: Callable[[Latents, Streams, int], Latents] = _the_latent_itself
    constraint: Callable[[Latents], Latents] = _as_is
    tether: Callable[[Latents, Latents], Latents] = _untied

    def search(self, start: Latents, labels: Labels, streams: Streams, run: Run) -> Descended:
        """Descend from `start`, in chunks of rows that fit the device.

        Raises:
            Diverged: A loss or a latent became NaN or infinite.
        """
        done = run.batches(
            lambda rows, *columns: self._descend(rows, len(labels), *columns, run=run),
            range(len(labels)), start, labels, streams,
        )  # fmt: skip
        losses = torch.stack([chunk.losses for chunk in done]).sum(dim=0) / len(labels)
        return Descended(torch.cat([chunk.latents for chunk in done]), self._curve(losses))

    def _descend(
        self, rows: range, total: int, latents: Latents, labels: Labels, streams: Streams, *, run: Run
    ) -> _Chunk:
        losses = torch.empty(self.steps, len(rows), device=latents.device)
        state, start = self.optimiser.start(latents), latents
        for step in range(self.steps):
            latents = latents.detach().requires_grad_()
            with torch.enable_grad():
                identity, loss = self._losses(latents, labels, streams, step)
                (gradient,) = torch.autograd.grad(loss.sum() / self.reference_batch, latents)
            losses[step] = identity.detach()
            if step == 0:
                self._check(losses[:1], labels)
            latents, state = self.optimiser.update(latents.detach(), gradient, state, step)
            latents = self.tether(self.constraint(latents), start)
            if (step + 1) % REPORT_EVERY == 0 or step + 1 == self.steps:
                run.on_step(self.stage, rows.start * self.steps + len(rows) * (step + 1), total * self.steps)
        self._check(torch.cat([losses, latents.flatten(1).sum(dim=1)[None].float()]), labels)
        self._count(run, len(rows) * self.steps)
        return _Chunk(latents, losses.cpu().double().sum(dim=1))

    def _losses(self, latents: Latents, labels: Labels, streams: Streams, step: int) -> tuple[PerSample, PerSample]:
        """The identity loss of each row, and everything that is minimised."""
        images = self.decode(self.sample(latents, streams, step), labels)
        shown = torch.cat([view(images, streams, step) for view in self.views]) if self.views else images
        copies = max(1, len(self.views))
        identity = self.identity(shown, labels.repeat(copies)).view(copies, -1).mean(dim=0)
        loss = self.identity_weight * identity
        return identity, loss if self.realism is None else loss - self.realism(images).float()

    def _check(self, losses: Float[Tensor, "steps rows"], labels: Labels) -> None:
        bad = ~losses.isfinite()
        if bad.any():
            step = int(bad.any(dim=1).int().argmax())
            classes = sorted(set(labels[bad[step]].tolist()))
            raise Diverged(
                f"expected finite losses, got NaN or infinity in stage {self.stage!r} at step {step} of {self.steps} "
                f"for classes {classes}; check the model and the prior for NaN weights, or lower the learning rate"
            )

    def _count(self, run: Run, images: int) -> None:
        passes = {"generator": 1, "target": max(1, len(self.views)), "critic": int(self.realism is not None)}
        for network, times in passes.items():
            if times:
                run.work.update({f"{network}_forward": images * times, f"{network}_backward": images * times})

    def _curve(self, losses: Float[Tensor, " steps"]) -> Curve:
        points = torch.linspace(0, self.steps - 1, min(self.steps, CURVE_POINTS)).round().long().tolist()
        return Curve(self.stage, tuple(points), tuple(losses[points].tolist()))
