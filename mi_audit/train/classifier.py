"""The training loop of classifiers: targets, defended targets and evaluators."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mi_audit.core.dataset import Dataset
from mi_audit.core.defense import Training
from mi_audit.core.errors import DataError, Diverged
from mi_audit.core.prior import Progress
from mi_audit.core.types import Labels, Scalar
from mi_audit.nn.freezing import train_mode
from mi_audit.train import checkpoint as checkpoints
from mi_audit.train.accuracy import hits_and_loss
from mi_audit.train.feeding import Batch, Feed, fastest_layout
from mi_audit.train.objective import Loss, Objective, Position, cross_entropy
from mi_audit.train.prefix import AGAIN, FrozenPrefix, frozen_prefix
from mi_audit.train.recipe import Recipe, optimiser_of
from mi_audit.train.seeding import seeded


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over the data came to; the validation values are None without validation images.

    Attributes:
        notes: Means of the numbers that the objective follows, such as the parts of the loss.
    """

    train_loss: float
    val_loss: float | None
    val_accuracy: float | None
    notes: Mapping[str, float] = field(default_factory=dict)

    def rank(self) -> tuple[float, float]:
        """Larger is better: validation accuracy, then validation loss."""
        return self.val_accuracy or 0.0, -(self.val_loss or 0.0)


@dataclass(frozen=True, slots=True)
class Span:
    """The place of a training in a longer one, in epochs.

    Attributes:
        start: Epochs that went before: orders, augmentations and dropout go on from there instead of coming again.
        whole: Of the learning rate schedule that all share; None is a schedule of this training's own.
        total: Of the longer training; None when nothing comes after this one.
    """

    start: int
    whole: int | None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """A finished training.

    Attributes:
        val_accuracy: Of the weights that were kept, as a share; None without validation images.
        epoch: The epoch they come from, counted from 1.
        history: Every epoch.
        facts: What a stepper that took the trainer's place did, and whether a frozen prefix ran only once.
    """

    val_accuracy: float | None
    epoch: int
    history: tuple[Epoch, ...]
    facts: Mapping[str, object] = field(default_factory=dict)


def fit(
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    device: str,
    loss: Loss | Objective = cross_entropy,
    keep: Literal["best", "last"] = "best",
    span: Span | None = None,
    on_step: Progress,
    checkpoint: Path | None = None,
) -> Fit:
    """Train `model` in place and leave in it the weights of the epoch that did best on `val`, or the last without one.

    Args:
        model: Maps images in [0, 1] to logits; parameters without grad stay as they are, and so do their batch norms.
        train: Images to learn from.
        val: Images to choose the epoch by; may be empty.
        recipe: The settings.
        seed: Of the order of the images, the augmentation and the dropout.
        device: Where to train; the model stays there.
        loss: A mean over the batch; defenses bring an objective, which says what else a step needs.
        keep: `last` keeps the weights of the last epoch whatever `val` says.
        span: Where this training lies in a longer one; None is all of it.
        on_step: Called as `on_step("epoch 3/20", images done, images in all epochs)`.
        checkpoint: Where to keep an unfinished run; a run that finds its own file there goes on after its last whole
            epoch, and ends with the weights of an uninterrupted run: bit for bit, unless a frozen prefix that was kept
            (see `train.prefix`) no longer fits into memory.

    Raises:
        ConfigError: No parameter requires grad.
        DataError: There is no training image.
        Diverged: The loss became NaN or infinite.
    """
    if not len(train):
        raise DataError(f"expected training images, got none in {train.name}; add images")
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    course = _Course(model, train, val, recipe, seed, device, objective, keep, span or Span(0, None), on_step)
    run = f"{recipe} seed {seed} on {len(train)} + {len(val)} images {train.fingerprint}"
    try:
        course.restore(checkpoints.load(checkpoint, run))
        while len(course.history) < recipe.epochs:
            with seeded(device, seed, "dropout", course.span.start + len(course.history)):
                course.epoch(len(course.history))
            if len(course.history) < recipe.epochs:
                checkpoints.save(checkpoint, run, course.state())
        checkpoints.clear(checkpoint)
        return course.finish()
    finally:
        course.close()


@dataclass
class _Course:
    """A training under way."""

    model: nn.Module
    train: Dataset
    val: Dataset
    recipe: Recipe
    seed: int
    device: str
    objective: Objective
    keep: Literal["best", "last"]
    span: Span
    on_step: Progress
    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    chosen: int = -1
    prefix: FrozenPrefix | None = None
    prefix_note: str = ""

    def __post_init__(self) -> None:
        self.model.to(self.device)
        recipe, layout = self.recipe, fastest_layout(self.model, self.train.images(slice(0, 2), self.device))
        self.feed = Feed(
            self.train, recipe.batch_size, recipe.augment, layout, self.seed, self.device,
            images_per_class=self.objective.images_per_class,
        )  # fmt: skip
        self.optimiser = optimiser_of(recipe, _trainable(self.model))
        largest = int(self.train.labels.bincount().max())
        about = Training(
            images=len(self.train), largest_class=largest, batch_size=recipe.batch_size,
            epochs=self.span.total or self.span.start + recipe.epochs, before=self.span.start, seed=self.seed,
        )  # fmt: skip
        self.stepper = self.objective.stepper(self.model, self.optimiser, about)

    def epoch(self, number: int) -> None:
        """One pass over the training images, a look at the validation images, a line in the history."""
        train_mode(self.model)
        epochs, count = self.recipe.epochs, len(self.train)
        steps = self.stepper.steps if self.stepper else len(self.feed)
        losses = torch.zeros(steps, device=self.device)
        notes: dict[str, list[Tensor]] = {}
        for step, batch in enumerate(self._batches(number, steps)):
            self._rate(number + step / steps)
            at = Position(self.seed, number, epochs, step, self.device, self.recipe.precision)
            losses[step], told = self._update(batch, at)
            for name, value in told.items():
                notes.setdefault(name, []).append(value.detach())
            self.on_step(f"epoch {number + 1}/{epochs}", number * count + batch.done, epochs * count)
        self._check(losses, number)
        self._judge(float(losses.mean()), {name: float(torch.stack(values).mean()) for name, values in notes.items()})

    def _batches(self, number: int, steps: int) -> Iterator[Batch]:
        if self.stepper is None:
            yield from self.feed.epoch(self.span.start + number)
            return
        for done, batch in enumerate(self.stepper.batches(self.feed.take, self.span.start + number), 1):
            yield Batch(*batch, done * len(self.train) // steps)

    def _update(self, batch: Batch, at: Position) -> tuple[Scalar, Mapping[str, Scalar]]:
        if self.stepper is not None:
            return self.objective.advance(self.stepper, batch.images, batch.labels, at), {}
        with self._behind_prefix(batch.rows):
            loss, notes = self.objective(self.model, batch.images, batch.labels, at)
        self.optimiser.zero_grad()
        loss.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(_trainable(self.model), self.recipe.clip)
        self.optimiser.step()
        return loss.detach(), notes

    def _behind_prefix(self, rows: Labels | None) -> AbstractContextManager[None]:
        return nullcontext() if self.prefix is None or rows is None else self.prefix.instead(rows)

    def keep_prefix(self) -> None:
        """Run the frozen layers for all images now, where every epoch would only repeat it."""
        repeated = self.recipe.augment == "none" and self.recipe.epochs > 1
        if not repeated or all(parameter.requires_grad for parameter in self.model.parameters()):
            return
        watched = self.objective.watches
        if watched is None:
            self.prefix_note = f"{AGAIN}: a defense changes the images, draws its batches or looks twice"
            return
        self.prefix, self.prefix_note = frozen_prefix(
            self.model, self.train, device=self.device, precision=self.recipe.precision, taps=watched
        )

    def _rate(self, epochs: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate_at(epochs)

    def _rate_at(self, epochs: float) -> float:
        start, whole = (self.span.start, self.span.whole) if self.span.whole else (0, self.recipe.epochs)
        return self.recipe.rate((start + epochs) / whole)

    def _check(self, losses: Tensor, number: int) -> None:
        weights = torch.stack([weight.isfinite().all() for weight in _trainable(self.model)]).all()
        broken = ~torch.cat([losses.isfinite(), weights[None]])
        if bool(broken.any()):
            step = min(int(broken.int().argmax()), len(losses) - 1)
            rate = self._rate_at(number + step / len(losses))
            raise Diverged(
                f"expected a finite loss, got NaN or infinity in epoch {number + 1}, step {step + 1} of {len(losses)}, "
                f"at learning rate {rate:.3g}; lower the learning rate, clip the gradient or train with precision 32"
            )

    def _judge(self, train_loss: float, notes: Mapping[str, float]) -> None:
        """Note the epoch, and keep its weights when it did best on the validation images so far."""
        hits, loss = hits_and_loss(self.model, self.val, self.device)
        seen, number = len(self.val), len(self.history)
        now = Epoch(train_loss, loss / seen, hits / seen, notes) if seen else Epoch(train_loss, None, None, notes)
        self.history.append(now)
        better = self.chosen < 0 or now.rank() > self.history[self.chosen].rank()
        if not seen or self.keep == "last":
            self.chosen = number
        elif better and self.objective.counts(number, self.recipe.epochs):
            self.chosen = number
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def state(self) -> dict[str, object]:
        """Everything that the following epochs depend on."""
        history = [asdict(epoch) for epoch in self.history]
        weights = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "best": self.best}
        return {**weights, "history": history, "chosen": self.chosen, **self._others()}

    def _others(self) -> dict[str, object]:
        stepper = {"stepper": self.stepper.state()} if self.stepper else {}
        prefix = {"prefix": self.prefix is not None, "prefix_note": self.prefix_note}
        return {"objective": self.objective.state(), **prefix, **stepper}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go back to `state`; without one, start. What began without a prefix goes on without, in the same numbers."""
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.best = dict(state["best"])
            self.history = [Epoch(**epoch) for epoch in state["history"]]
            self.chosen = state["chosen"]
            self.objective.restore(state["objective"])
            if self.stepper is not None:
                self.stepper.restore(state["stepper"])
            self.prefix_note = state["prefix_note"]
        if state is None or state["prefix"]:
            self.keep_prefix()

    def finish(self) -> Fit:
        """Put the chosen weights into the model, in the usual memory layout and in eval mode."""
        if self.best:
            self.model.load_state_dict(self.best)
        self.model.to(memory_format=torch.contiguous_format).eval()
        self.chosen = self.chosen if self.chosen >= 0 else len(self.history) - 1  # no epoch counted
        accuracy_there = self.history[self.chosen].val_accuracy if self.history else None
        noted = {"frozen_prefix": self.prefix_note} if self.prefix_note else {}
        facts = {**noted, **(self.stepper.facts() if self.stepper else {})}
        return Fit(accuracy_there, self.chosen + 1, tuple(self.history), facts)

    def close(self) -> None:
        """Take everything off the model that only the training needed."""
        if self.stepper is not None:
            self.stepper.close()


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]
