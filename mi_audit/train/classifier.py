"""The training loop of classifiers: targets, defended targets and evaluators."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError, DataError, Diverged
from mi_audit.core.prior import Progress
from mi_audit.core.report import Interval, Quantity
from mi_audit.core.types import Scalar
from mi_audit.nn.freezing import train_mode
from mi_audit.nn.intervals import clopper_pearson
from mi_audit.nn.precision import Precision
from mi_audit.train import checkpoint as checkpoints
from mi_audit.train.augment import Augmentation
from mi_audit.train.feeding import Batch, Feed, fastest_layout
from mi_audit.train.objective import Loss, Objective, Position, cross_entropy
from mi_audit.train.seeding import seeded


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train a classifier.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step; a last batch of one image is dropped, for batch norms.
        lr: Learning rate, the peak of the schedule.
        optimiser: `sgd` with Nesterov momentum 0.9, or `adam`; either sees only parameters that require grad.
        weight_decay: Of the optimiser.
        schedule: `one-cycle` (a quarter up, then down to nothing, both as cosines), `constant`, or `milestones`
            (a tenth from 75 % on, a hundredth from 90 % on).
        augment: `none`, `shift` (never mirrors) or `faces` (mirrors).
        precision: `auto` is mixed bfloat16 where the hardware has it; the loss is always in single precision.
        clip: Largest norm of the gradient; None does not clip.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.05
    optimiser: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = 5e-4
    schedule: Literal["one-cycle", "constant", "milestones"] = "one-cycle"
    augment: Augmentation = "none"
    precision: Precision = "auto"
    clip: float | None = None

    def rate(self, progress: float) -> float:
        """The learning rate once `progress` of the training, from 0 to 1, is done."""
        match self.schedule:
            case "constant":
                return self.lr
            case "milestones":
                return self.lr * (1.0 if progress < 0.75 else 0.1 if progress < 0.9 else 0.01)
            case "one-cycle":
                rising = progress < 0.25
                low, share = (0.04, 1 - progress / 0.25) if rising else (0.0, (progress - 0.25) / 0.75)
                return self.lr * (low + (1 - low) * (1 + math.cos(math.pi * share)) / 2)


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
    """The place of a training in a longer one, so that both share one learning rate schedule: in epochs."""

    start: int
    whole: int


@dataclass(frozen=True, slots=True)
class Fit:
    """A finished training.

    Attributes:
        val_accuracy: Of the weights that were kept, as a share; None without validation images.
        epoch: The epoch they come from, counted from 1.
        history: Every epoch.
    """

    val_accuracy: float | None
    epoch: int
    history: tuple[Epoch, ...]


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
        span: Where this training lies in a longer one with the same schedule; None is all of it.
        on_step: Called as `on_step("epoch 3/20", images done, images in all epochs)`.
        checkpoint: Where to keep an unfinished run; a run that finds its own file there goes on after its last whole
            epoch, and ends with the weights of an uninterrupted run, bit for bit.

    Raises:
        ConfigError: No parameter requires grad.
        DataError: There is no training image.
        Diverged: The loss became NaN or infinite.
    """
    if not len(train):
        raise DataError(f"expected training images, got none in {train.name}; add images")
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    course = _Course(model, train, val, recipe, seed, device, objective, keep, span or Span(0, recipe.epochs), on_step)
    run = f"{recipe} seed {seed} on {len(train)} + {len(val)} images {train.fingerprint}"
    course.restore(checkpoints.load(checkpoint, run))
    while len(course.history) < recipe.epochs:
        with seeded(device, seed, "dropout", len(course.history)):
            course.epoch(len(course.history))
        if len(course.history) < recipe.epochs:
            checkpoints.save(checkpoint, run, course.state())
    checkpoints.clear(checkpoint)
    return course.finish()


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset, device: str, batch_size: int = 256) -> Quantity:
    """The share of `data` that `model` puts into the right class, with its exact 95 % interval."""
    if not len(data):
        return Quantity(
            value=None, unit="share", count=0, counted="images", reason=f"{data.name} has no images in this split"
        )
    hits, _ = _hits_and_loss(model, data, device, batch_size)
    low, high = clopper_pearson(hits, len(data))
    interval = Interval(low=low, high=high, method="exact binomial (Clopper-Pearson) over images")
    return Quantity(value=hits / len(data), unit="share", count=len(data), counted="images", interval=interval)


@torch.no_grad()
def _hits_and_loss(model: nn.Module, data: Dataset, device: str, batch_size: int = 256) -> tuple[int, float]:
    """Images classified rightly, and the summed cross-entropy; leaves the model in the mode it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    hits = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    for start in range(0, len(data), batch_size):
        rows = slice(start, start + batch_size)
        logits, labels = model(data.images(rows, device)).float(), data.labels[rows].to(device)
        hits += (logits.argmax(dim=1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum")
    for module, mode in training.items():
        module.training = mode
    return int(hits), float(loss)


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

    def __post_init__(self) -> None:
        self.model.to(self.device)
        recipe, layout = self.recipe, fastest_layout(self.model, self.train.images(slice(0, 2), self.device))
        self.feed = Feed(
            self.train, recipe.batch_size, recipe.augment, layout, self.seed, self.device,
            images_per_class=self.objective.images_per_class,
        )  # fmt: skip
        self.optimiser = _optimiser(self.model, recipe)

    def epoch(self, number: int) -> None:
        """One pass over the training images, a look at the validation images, a line in the history."""
        train_mode(self.model)
        epochs, steps, count = self.recipe.epochs, len(self.feed), len(self.train)
        losses = torch.zeros(steps, device=self.device)
        notes: dict[str, list[Tensor]] = {}
        for step, batch in enumerate(self.feed.epoch(number)):
            self._rate(number + step / steps)
            at = Position(self.seed, number, epochs, step, self.device, self.recipe.precision)
            losses[step], told = self._update(batch, at)
            for name, value in told.items():
                notes.setdefault(name, []).append(value.detach())
            self.on_step(f"epoch {number + 1}/{epochs}", number * count + batch.done, epochs * count)
        self._check(losses, number)
        self._judge(float(losses.mean()), {name: float(torch.stack(values).mean()) for name, values in notes.items()})

    def _update(self, batch: Batch, at: Position) -> tuple[Scalar, Mapping[str, Scalar]]:
        loss, notes = self.objective(self.model, batch.images, batch.labels, at)
        self.optimiser.zero_grad()
        loss.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(_trainable(self.model), self.recipe.clip)
        self.optimiser.step()
        return loss.detach(), notes

    def _rate(self, epochs: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate((self.span.start + epochs) / self.span.whole)

    def _check(self, losses: Tensor, number: int) -> None:
        weights = torch.stack([weight.isfinite().all() for weight in _trainable(self.model)]).all()
        broken = ~torch.cat([losses.isfinite(), weights[None]])
        if bool(broken.any()):
            step = min(int(broken.int().argmax()), len(losses) - 1)
            rate = self.recipe.rate((self.span.start + number + step / len(losses)) / self.span.whole)
            raise Diverged(
                f"expected a finite loss, got NaN or infinity in epoch {number + 1}, step {step + 1} of {len(losses)}, "
                f"at learning rate {rate:.3g}; lower the learning rate, clip the gradient or train with precision 32"
            )

    def _judge(self, train_loss: float, notes: Mapping[str, float]) -> None:
        """Note the epoch, and keep its weights when it did best on the validation images so far."""
        hits, loss = _hits_and_loss(self.model, self.val, self.device)
        seen, number = len(self.val), len(self.history)
        now = Epoch(train_loss, loss / seen, hits / seen, notes) if seen else Epoch(train_loss, None, None, notes)
        self.history.append(now)
        if not seen or self.keep == "last":
            self.chosen = number
        elif self.objective.counts(number, self.recipe.epochs) and (
            self.chosen < 0 or now.rank() > self.history[self.chosen].rank()
        ):
            self.chosen = number
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def state(self) -> dict[str, object]:
        """Everything that the following epochs depend on."""
        history = [asdict(epoch) for epoch in self.history]
        weights = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "best": self.best}
        return {**weights, "history": history, "chosen": self.chosen, "objective": self.objective.state()}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go back to `state`; without one, start."""
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.best = dict(state["best"])
            self.history = [Epoch(**epoch) for epoch in state["history"]]
            self.chosen = state["chosen"]
            self.objective.restore(state["objective"])

    def finish(self) -> Fit:
        """Put the chosen weights into the model, in the usual memory layout and in eval mode."""
        if self.best:
            self.model.load_state_dict(self.best)
        self.model.to(memory_format=torch.contiguous_format).eval()
        self.chosen = self.chosen if self.chosen >= 0 else len(self.history) - 1  # no epoch counted
        accuracy_there = self.history[self.chosen].val_accuracy if self.history else None
        return Fit(accuracy_there, self.chosen + 1, tuple(self.history))


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    weights = _trainable(model)
    if not weights:
        raise ConfigError("expected at least one trainable parameter, got none; freeze less of the network")
    if recipe.optimiser == "adam":
        return torch.optim.Adam(weights, recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(weights, recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay, nesterov=True)
