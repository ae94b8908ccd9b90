"""The training of a classifier under defenses: their parts around one forward pass, their phases one after another."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.core.dataset import Dataset
from mi_audit.core.defense import MAIN, Defense, Moment, Phase, Slot, Step, Stepper, Training
from mi_audit.core.errors import ConfigError
from mi_audit.core.prior import Progress
from mi_audit.core.types import Images, Labels, Logits, Scalar
from mi_audit.nn.precision import autocast
from mi_audit.train import checkpoint as checkpoints
from mi_audit.train.classifier import Epoch, Fit, Span, fit
from mi_audit.train.objective import Losses, Objective, Position
from mi_audit.train.recipe import Recipe
from mi_audit.train.seeding import seeded, stream

Parts = Mapping[str, Defense]  # by command-line name, in the order of their slots


@dataclass(frozen=True, slots=True)
class DefendedFit:
    """A finished training under defenses.

    Attributes:
        phases: Name and course of every phase, in order.
    """

    phases: tuple[tuple[str, Fit], ...]

    @property
    def val_accuracy(self) -> float | None:
        """Of the weights the last phase kept."""
        return self.phases[-1][1].val_accuracy

    def notes(self, name: str) -> dict[str, float]:
        """What the part called `name` noted, in the last epoch in which it did."""
        epochs = [epoch.notes for _, fitted in self.phases for epoch in fitted.history]
        prefix = f"{name}."
        own = [{k.removeprefix(prefix): v for k, v in one.items() if k.startswith(prefix)} for one in epochs]
        return next((one for one in reversed(own) if one), {})


class DefendedObjective(Objective):
    """One forward pass, the base loss, and a term per defense.

    Args:
        parts: The defenses.
        companions: What some of them train beside the network, by name.
        taps: Names of the modules whose outputs each part's term needs.
        phase: Name of the phase.
    """

    def __init__(
        self, parts: Parts, companions: Mapping[str, nn.Module], taps: Mapping[str, Sequence[str]], phase: str
    ) -> None:
        self._parts, self._companions, self._taps, self._phase = parts, companions, taps, phase

    @property
    def images_per_class(self) -> int | None:
        """The balance that a part asks for."""
        return next((part.images_per_class for part in self._parts.values() if part.images_per_class), None)

    @property
    def watches(self) -> frozenset[str] | None:
        if any(part.looks_again or part.slots & {Slot.DATA, Slot.STEP} for part in self._parts.values()):
            return None
        return frozenset(module for tapped in self._taps.values() for module in tapped)

    def __call__(self, model: nn.Module, images: Images, labels: Labels, at: Position) -> Losses:
        moments = {name: self._moment(name, at) for name in self._parts}
        for name, part in self._filling(Slot.DATA):
            images = part.transform(images, labels, moments[name])
        with autocast(at.device, at.precision), tapped(model, {m for t in self._taps.values() for m in t}) as caught:
            logits = model(images)
        logits, outputs = logits.float(), {name: output.float() for name, output in caught.items()}
        total = base = self._base(logits, labels, moments)
        notes = {"base": base}
        for name, part in self._filling(Slot.TERM):
            seen = {module: outputs[module] for module in self._taps.get(name, ())}
            companion = self._companions.get(name)
            term = part.term(Step(model, images, labels, logits, seen, base, moments[name], companion))
            if term is not None:
                total = total + term.value
                notes |= {name: term.value, **{f"{name}.{key}": value for key, value in term.notes.items()}}
        return Losses(total, notes)

    def stepper(self, model: nn.Module, optimiser: torch.optim.Optimizer, training: Training) -> Stepper | None:
        for _, part in self._filling(Slot.STEP):
            return part.stepper(model, optimiser, training)
        return None

    def advance(self, stepper: Stepper, images: Images, labels: Labels, at: Position) -> Scalar:
        moments = {name: self._moment(name, at) for name in self._parts}
        for name, part in self._filling(Slot.DATA):
            images = part.transform(images, labels, moments[name])
        return stepper.step(images, labels, lambda logits, theirs: self._base(logits, theirs, moments))

    def counts(self, epoch: int, epochs: int) -> bool:
        return self._phase != MAIN or all(part.in_force(epoch, epochs) for part in self._parts.values())

    def state(self) -> dict[str, Any]:
        return {name: companion.state_dict() for name, companion in self._companions.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, companion in self._companions.items():
            companion.load_state_dict(state[name])

    def _filling(self, slot: Slot) -> Iterator[tuple[str, Defense]]:
        return ((name, part) for name, part in self._parts.items() if slot in part.slots)

    def _moment(self, name: str, at: Position) -> Moment:
        rng = stream(at.seed, "defense", name, self._phase, at.epoch, at.step)
        return Moment(self._phase, at.epoch, at.epochs, rng)

    def _base(self, logits: Logits, labels: Labels, moments: Mapping[str, Moment]) -> Scalar:
        for name, part in self._parts.items():
            if part.slots & {Slot.LOSS, Slot.PHASE}:
                loss = part.objective(logits, labels, moments[name])
                if loss is not None:
                    return loss
        return F.cross_entropy(logits, labels)


@contextmanager
def tapped(model: nn.Module, names: set[str]) -> Iterator[dict[str, Tensor]]:
    """What the named modules give while the block runs; a module that runs twice leaves its last output."""
    caught: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        caught[name] = output

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
        for name in sorted(names)
    ]
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()


def freeze(model: nn.Module, parts: Parts, example: Images) -> dict[str, dict[str, object]]:
    """Let the parts take layers of `model` out of training, on the device of `example`; what each of them decided."""
    return {n: part.freeze_layers(model, example) for n, part in parts.items() if Slot.FREEZE in part.slots}


def fit_defended(
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    recipe: Recipe,
    parts: Parts,
    *,
    seed: int,
    device: str,
    on_step: Progress,
    checkpoint: Path | None = None,
) -> DefendedFit:
    """Train `model` in place through all phases; its architecture was edited and its layers frozen before.

    Args:
        model: Maps images in [0, 1] to logits; carries the weights to start from.
        train: Images to learn from.
        val: Images to choose the epochs by; may be empty.
        recipe: Of the main phase; its epochs include those of phases before it.
        parts: The defenses.
        seed: Of order, augmentation, dropout, companions and the parts' own random numbers.
        device: Where to train.
        on_step: See `train.classifier.fit`.
        checkpoint: Where to keep an unfinished training; a file beside it holds the phase under way.

    Raises:
        ConfigError: Nothing is left to train, or the phases need more epochs than there are.
    """
    model.to(device)
    example = train.images(slice(0, 2), device)
    with seeded(device, seed, "companions"):
        made = {name: part.companion(model, len(train.classes), example) for name, part in parts.items()}
    companions = {name: one.to(device) for name, one in made.items() if one is not None}
    taps = {name: tuple(part.taps(model, example)) for name, part in parts.items() if Slot.TERM in part.slots}
    run = f"phases of {recipe} {dict(parts)} seed {seed} on {train.fingerprint}"
    kept = checkpoints.load(checkpoint, run) or {"done": 0}
    done: list[tuple[str, Fit]] = []
    planned = schedule(recipe, parts)
    for number, (phase, own, span) in enumerate(planned):
        objective = DefendedObjective(parts, companions, taps, phase.name)
        if number and number == kept["done"]:  # before the parts enter the phase, which may change the weights
            model.load_state_dict(kept["model"])
            objective.restore(kept["companions"])
        for part in parts.values():
            part.enter(model, phase.name)
        if number < kept["done"]:
            done.append((phase.name, _restored(kept["fits"][number])))
            continue
        with only(model, phase.part):
            fitted = fit(
                model, train, val, own, seed=seed, device=device, loss=objective, keep=phase.keep, span=span,
                on_step=_named(on_step, phase.name),
                checkpoint=checkpoint and checkpoint.with_stem(f"{checkpoint.stem}-{phase.name}"),
            )  # fmt: skip
        done.append((phase.name, fitted))
        if number + 1 < len(planned):
            fits = [asdict(fit) for _, fit in done]
            state = {"done": number + 1, "fits": fits, "model": model.state_dict(), "companions": objective.state()}
            checkpoints.save(checkpoint, run, state)
    checkpoints.clear(checkpoint)
    return DefendedFit(tuple(done))


def _restored(fit: Mapping[str, Any]) -> Fit:
    return Fit(**{**fit, "history": tuple(Epoch(**epoch) for epoch in fit["history"])})


def schedule(recipe: Recipe, parts: Parts) -> tuple[tuple[Phase, Recipe, Span], ...]:
    """Every phase in order, with its recipe and its place; a phase without a rate of its own shares the schedule.

    Phases that train a part alone come first: a fresh head learns before the rest learns from it.

    Raises:
        ConfigError: The phases before the main one take all its epochs, or name a field that no recipe has.
    """
    extra = [phase for part in parts.values() if Slot.PHASE in part.slots for phase in part.phases()]
    before, after = ([p for p in extra if p.when == when] for when in ("before", "after"))
    before.sort(key=lambda phase: phase.part is None)
    spent = sum(phase.epochs for phase in before)
    if spent >= recipe.epochs:
        raise ConfigError(
            f"expected more than {spent} epochs, got {recipe.epochs}: {' and '.join(p.name for p in before)} take "
            f"{spent}; raise --epochs"
        )
    main = Phase(name=MAIN, when="before", epochs=recipe.epochs - spent)
    rows, start = [], 0
    for phase in (*before, main, *after):
        shares = phase.when == "before" and not phase.recipe
        span = Span(start, recipe.epochs if shares else None, recipe.epochs + sum(phase.epochs for phase in after))
        start += phase.epochs
        rows.append((phase, replace(recipe, **{**_known(phase), "epochs": phase.epochs}), span))
    return tuple(rows)


def _known(phase: Phase) -> dict[str, Any]:
    unknown = set(phase.recipe) - {field.name for field in fields(Recipe)}
    if unknown:
        raise ConfigError(f"expected fields of a recipe in the phase {phase.name}, got {', '.join(sorted(unknown))}")
    return dict(phase.recipe)


@contextmanager
def only(model: nn.Module, part: str | None) -> Iterator[None]:
    """Let nothing but the module called `part` train while the block runs; None changes nothing."""
    if part is None:
        yield
        return
    inside = {id(parameter) for parameter in model.get_submodule(part).parameters()}
    held = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def _named(on_step: Progress, phase: str) -> Progress:
    if phase == MAIN:
        return on_step
    return lambda label, done, total: on_step(f"{phase}, {label}", done, total)
