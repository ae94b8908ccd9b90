"""The one gradient search over latents that the white-box attacks share.

A method fills the slots: prior x latent x objective x views x optimiser x constraint. Where the search starts and what
is kept of it (init and selection) is up to the method, before and after.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mi_audit.core.errors import Diverged
from mi_audit.core.random import Streams
from mi_audit.core.reconstruction import Curve
from mi_audit.core.run import Run, is_out_of_memory
from mi_audit.core.types import Images, Labels, Latents, PerSample
from mi_audit.nn.averaging import averaged
from mi_audit.nn.descent_path import Path
from mi_audit.nn.early_stopping import leaving, note_steps, polished, polishing, rule_of
from mi_audit.nn.mixed_precision import ROWS, decided, mixed_steps, networks, spread
from mi_audit.nn.optimisers import Optimiser
from mi_audit.nn.views import View

REPORT_EVERY = 5  # steps between two progress reports inside a chunk
CURVE_POINTS = 100


class Descended(NamedTuple):
    """Where the latents ended, and the mean identity loss on the way."""

    latents: Latents
    curve: Curve


class _Chunk(NamedTuple):
    """The end of one chunk: `losses` are summed over its rows, step by step; `taken` are the steps of each row."""

    latents: Latents
    losses: Float[Tensor, " steps"]
    taken: Int64[Tensor, " rows"]


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
    """Minimise `identity_weight * identity - realism + penalty` over latents, every row for itself.

    The loss of a batch is the sum over its rows, so that neither the batch size nor the neighbours of a latent change
    its path. Only latents receive gradients. Losses stay on the device until a chunk of rows has finished, and no step
    waits for the device. When memory runs out between two steps, the rows go on in two halves from where they are.

    A row may stand for several images, whose losses are averaged: samples of a distribution, or pictures that belong
    together. They are never split between chunks, and the images of one row follow each other.

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
        students: Networks that `identity` asks besides the target; they are only counted.
        samples: Images that every row stands for; `sample` returns that many latents per row, those of a row together.
        penalty: Per-row term of the latents themselves, given the same stream and step as `sample`; None is nothing.
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
    samples: int = 1
    students: int = 0
    penalty: Callable[[Latents, Streams, int], PerSample] | None = None
    constraint: Callable[[Latents], Latents] = _as_is
    tether: Callable[[Latents, Latents], Latents] = _untied

    def search(self, start: Latents, labels: Labels, streams: Streams, run: Run) -> Descended:
        """Descend from `start`, in chunks of rows that fit the device.

        With `run.averaging` the identity loss is averaged over views of every image, each of which then goes through
        the method's own views. With `run.early_stop` rows that have converged leave the batch, and only the steps that
        were taken are counted as work.

        Networks compute in what `run.precision` asks for, if the gradients of the first step allow it; the last steps
        do not, which rows that have converged take before they leave.

        Raises:
            Diverged: A loss or a latent became NaN or infinite.
        """
        if mixed_steps(self.steps):
            run = decided(run, self.stage, start.device, lambda run: self._first(start, labels, streams, run))
        done = replace(run, batch_size=max(1, run.batch_size // self.samples)).batches(
            lambda rows, *columns: self._descend(rows, len(labels), *columns, run=run),
            range(len(labels)), start, labels, streams,
        )  # fmt: skip
        losses = torch.stack([chunk.losses for chunk in done]).sum(dim=0) / len(labels)
        note_steps(run, self.stage, self.steps, torch.cat([chunk.taken for chunk in done]), self.optimiser)
        return Descended(torch.cat([chunk.latents for chunk in done]), self._curve(losses))

    def _descend(
        self, rows: range, total: int, latents: Latents, labels: Labels, streams: Streams, *, run: Run
    ) -> _Chunk:
        """All steps of these rows; when memory runs out on the way, each half goes on from the last step."""
        losses = torch.empty(self.steps, len(rows), device=latents.device)
        places = torch.arange(len(rows))
        waiting = [Path(places, latents, latents, labels, streams, self.optimiser.start(latents), losses)]
        ended: list[Path] = []
        while waiting:
            path = waiting.pop()
            before = (rows.start + sum(map(len, ended))) * self.steps + sum(len(one) * one.step for one in waiting)
            over = self._over(path, before, total, run if path.end is None else polishing(run))
            if over is None:  # outside of the handler, which holds on to the memory of the step that failed
                waiting += reversed(path.parted())
                continue
            if not over.all():
                path, others = path.parted_by(over)
                waiting.append(others)
            if path.end is None and (last := polished(path.step, self.steps, run)) > path.step:
                path.end = last
                waiting.append(path)
                continue
            path.losses[path.step :] = path.losses[path.step - 1]  # of steps that are left out
            ended.append(path)
            self._tell(before + len(path) * self.steps, total, run)
        order = torch.cat([path.rows for path in ended]).argsort().to(latents.device)
        end = torch.cat([path.latents for path in ended]).index_select(0, order)
        losses = torch.cat([path.losses for path in ended], dim=1).index_select(1, order)
        taken = torch.cat([torch.full_like(path.rows, path.step) for path in ended])
        self._check(torch.cat([losses, end.flatten(1).sum(dim=1)[None].float()]), labels)
        self._count(run, int(taken.sum()) * self.samples)
        return _Chunk(end, losses.cpu().double().sum(dim=1), taken)

    def _over(self, path: Path, before: int, total: int, run: Run) -> Bool[Tensor, " rows"] | None:
        """Take steps until some rows are over, and say which; None when there was no memory, and rows to part.

        Until the first step is done `Run.batches` halves the chunk, and remembers for those that follow.
        """
        shown, rule = self._shown(path.labels, path.streams, total, run), rule_of(run, self.optimiser)
        while True:
            counted = run.counted()
            try:
                self._step(path, shown, run)
            except RuntimeError as error:
                if path.step == 0 or len(path) == 1 or not is_out_of_memory(error):
                    raise
                run.forget_since(counted)
                return None
            over = leaving(path.losses[: path.end], path.step, rule)
            if over is not None:
                return over
            if path.step % REPORT_EVERY == 0:
                self._tell(before + len(path) * path.step, total, run)

    def _tell(self, done: int, total: int, run: Run) -> None:
        """Report steps of rows as those of samples."""
        run.on_step(self.stage, done * self.samples, total * self.steps * self.samples)

    def _first(self, start: Latents, labels: Labels, streams: Streams, run: Run) -> Float[Tensor, "rows numbers"]:
        """The gradient of what networks have a part in, at the start of some of the rows."""

        def one(latents: Latents, labels: Labels, streams: Streams) -> Tensor:
            shown = through._shown(labels, streams, len(labels), run)
            return through._gradient(latents, labels, streams, 0, shown, run)[1].flatten(1)

        through, few = replace(self, penalty=None), spread(len(labels), ROWS).to(labels.device)
        return run.map(one, start[few], labels[few], streams[few])

    def _step(self, path: Path, shown: Callable[[Images, int], PerSample], run: Run) -> None:
        """Move the rows by one step; nothing of them changes when it fails."""
        step = path.step
        identity, gradient = self._gradient(path.latents, path.labels, path.streams, step, shown, run)
        path.losses[step] = identity
        if step == 0:
            self._check(path.losses[:1], path.labels)
        moved, state = self.optimiser.update(path.latents.detach(), gradient, path.state, step)
        moved = self.tether(self.constraint(moved), path.start)
        path.latents, path.state, path.step = moved, state, step + 1

    def _gradient(
        self, latents: Latents, labels: Labels, streams: Streams, step: int,
        shown: Callable[[Images, int], PerSample], run: Run,
    ) -> tuple[PerSample, Latents]:  # fmt: skip
        """The identity loss of each row, and the gradient of everything that is minimised."""
        latents, every = latents.detach().requires_grad_(), labels.repeat_interleave(self.samples)
        with torch.enable_grad():
            drawn = self.sample(latents, streams, step)
            with networks(run, latents.device, exact=step >= mixed_steps(self.steps)):
                images = self.decode(drawn, every).float()
                identity = shown(images, step).view(-1, self.samples).mean(dim=1)
                loss = self.identity_weight * identity
                if self.realism is not None:
                    loss = loss - self.realism(images).float().view(-1, self.samples).mean(dim=1)
            if self.penalty is not None:
                loss = loss + self.penalty(latents, streams, step)
            (gradient,) = torch.autograd.grad(loss.sum() / self.reference_batch, latents)
        return identity.detach(), gradient

    def _shown(self, labels: Labels, streams: Streams, total: int, run: Run) -> Callable[[Images, int], PerSample]:
        """The identity loss of every image of these rows, as a function of the images and the step."""
        labels, streams = labels.repeat_interleave(self.samples), streams.branches(self.samples)
        if run.averaging is None:
            return lambda images, step: self._identity(images, labels, streams, step)
        averaging, at_once = run.averaging, max(1, run.batch_size // (total * self.samples))

        def average(images: Images, step: int) -> PerSample:
            def one(images: Images, labels: Labels, streams: Streams) -> PerSample:
                return self._identity(images, labels, streams, step)

            return averaged(one, images, labels, streams, step, averaging, at_once)

        return average

    def _identity(self, images: Images, labels: Labels, streams: Streams, step: int) -> PerSample:
        """The identity loss of each image, averaged over the method's own views."""
        shown = torch.cat([view(images, streams, step) for view in self.views]) if self.views else images
        copies = max(1, len(self.views))
        return self.identity(shown, labels.repeat(copies)).float().view(copies, -1).mean(dim=0)

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
        views = max(1, len(self.views)) * (run.averaging.count if run.averaging else 1)
        passes = {
            "generator": 1, "target": views, "critic": int(self.realism is not None), "student": views * self.students
        }  # fmt: skip
        for network, times in passes.items():
            if times:
                run.work.update({f"{network}_forward": images * times, f"{network}_backward": images * times})

    def _curve(self, losses: Float[Tensor, " steps"]) -> Curve:
        points = torch.linspace(0, self.steps - 1, min(self.steps, CURVE_POINTS)).round().long().tolist()
        return Curve(self.stage, tuple(points), tuple(losses[points].tolist()))
