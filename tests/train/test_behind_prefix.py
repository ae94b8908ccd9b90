"""Trainings whose frozen layers run once end as those in which they run in every step."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from mi_audit.core.defense import Slot, Term
from mi_audit.nn import freezing
from mi_audit.train import classifier, prefix
from mi_audit.train.defended import DefendedObjective, fit_defended, freeze
from tests.nn.test_anatomy import plain_cnn
from tests.toy import dataset
from tests.train.test_defended import RECIPE, Darkening, Doubling, Part, Phased, Remembering, same


@dataclass(frozen=True)
class Freezing(Part):
    """Freezes the first three of five convolutions."""

    slots: ClassVar = frozenset({Slot.FREEZE})

    def freeze_layers(self, model, example):
        return freezing.freeze(model, "60%", example).as_mapping()


@dataclass(frozen=True)
class Watching(Part):
    """Keeps what a frozen layer gave, and acts on one that learns."""

    slots: ClassVar = frozenset({Slot.TERM})
    seen: ClassVar[list[torch.Tensor]] = []

    def taps(self, *_given):
        return ("5", "16")

    def term(self, step):
        self.seen.append(step.taps["5"].clone())
        return Term(1e-2 * step.taps["16"].square().mean())


@dataclass(frozen=True)
class Twice(Part):
    """Looks at the network again."""

    slots: ClassVar = frozenset({Slot.TERM})
    looks_again: ClassVar = True

    def term(self, step):
        return Term(step.model(step.images.flip(3)).square().mean())


@dataclass(frozen=True)
class Drawing(Part):
    """Draws its own batches."""

    slots: ClassVar = frozenset({Slot.STEP})


FROZEN = {"freezing": Freezing()}
KEPT = "the frozen prefix, up to 8, ran once; its features take 0.0 MiB"
LOOKS = "the frozen prefix runs again in every epoch: a defense changes the images, draws its batches or looks twice"


def train(parts, recipe=RECIPE, on_step=lambda *_: None, **more):
    """The trained network, its course, and how often its first layer saw the training images."""
    torch.manual_seed(0)
    model, data, seen = plain_cnn(), dataset(), []
    freeze(model, parts, data.images(slice(0, 1), "cpu"))
    model.train()

    def count(_module, _inputs, output):
        if model.training and output.any():  # a layer that is skipped gives zeros
            seen.append(len(output))

    run = model[0].register_forward_hook(count)
    try:
        done = fit_defended(model, data, data, recipe, parts, seed=0, device="cpu", on_step=on_step, **more)
    finally:
        run.remove()
    return model, done, sum(seen)


def plainly(monkeypatch, *given, **named):
    """The same without keeping anything."""
    with monkeypatch.context() as patch:
        patch.setattr(DefendedObjective, "watches", None)
        return train(*given, **named)


def losses(done):
    return [epoch.train_loss for _, fitted in done.phases for epoch in fitted.history]


def facts(done):
    return {name: fitted.facts.get("frozen_prefix") for name, fitted in done.phases}


def close(one, other):
    """Up to rounding: 2^-24 relative per sum, in sums of 36 terms and over some 30 steps that each move by a tenth."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("extra", [{}, {"doubling": Doubling()}, {"phased": Phased()}, {"remembering": Remembering()}])
def test_losses_and_weights_are_those_of_the_plain_path(monkeypatch, extra):
    parts = FROZEN | extra
    model, done, _ = train(parts)
    plain, expected, _ = plainly(monkeypatch, parts)
    assert losses(done) == pytest.approx(losses(expected), rel=1e-5)
    assert close(model, plain) and not same(model, plain_cnn())
    assert [fitted.epoch for _, fitted in done.phases] == [fitted.epoch for _, fitted in expected.phases]
    assert "ran once" in facts(done)["main"] and "ran once" not in str(facts(expected)["main"])


def test_frozen_layers_see_every_image_once(monkeypatch):
    _, done, seen = train(FROZEN)
    example, tries = 8, 1  # the first end of the prefix is the right one
    assert seen == 24 + tries * example and facts(done) == {"main": KEPT}
    assert plainly(monkeypatch, FROZEN)[2] == 3 * 24


def test_a_phase_in_which_less_learns_keeps_more():
    long = replace(RECIPE, epochs=5)
    warm = type("Warm", (Phased,), {"phases": lambda _: (replace(Phased.phases(_)[0], epochs=2),)})
    _, done, _ = train(FROZEN | {"warm": warm()}, long)
    assert facts(done) == {"warm-up": KEPT.replace("up to 8", "up to 16"), "main": KEPT}


def test_layers_that_a_term_looks_at_give_it_what_they_always_did(monkeypatch):
    parts = FROZEN | {"watching": Watching()}
    Watching.seen.clear()
    model, done, _ = train(parts)
    kept = list(Watching.seen)
    Watching.seen.clear()
    plain, expected, _ = plainly(monkeypatch, parts)
    assert facts(done) == {"main": KEPT.replace("up to 8", "up to 5")}
    assert len(kept) == 9 and kept[0].abs().max() > 0.1
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(kept, Watching.seen, strict=True))
    assert losses(done) == pytest.approx(losses(expected), rel=1e-5) and close(model, plain)


@pytest.mark.parametrize(
    ("parts", "recipe", "note"),
    [
        (FROZEN, replace(RECIPE, augment="shift"), None),
        (FROZEN, replace(RECIPE, epochs=1), None),
        ({}, RECIPE, None),
        (FROZEN | {"darkening": Darkening()}, RECIPE, LOOKS),
        (FROZEN | {"twice": Twice()}, RECIPE, LOOKS),
    ],
)
def test_otherwise_every_bit_is_that_of_the_plain_path(monkeypatch, parts, recipe, note):
    model, done, seen = train(parts, recipe)
    plain, expected, whole = plainly(monkeypatch, parts, recipe)
    assert same(model, plain) and losses(done) == losses(expected)
    assert facts(done) == {"main": note} and seen == whole


def test_what_draws_its_own_batches_needs_every_layer():
    assert DefendedObjective(FROZEN | {"drawing": Drawing()}, {}, {}, "main").watches is None
    assert DefendedObjective(FROZEN, {}, {"watching": ("5",)}, "main").watches == {"5"}
    assert classifier.Objective(classifier.cross_entropy).watches is None


def test_without_memory_the_plain_path_says_so(monkeypatch):
    monkeypatch.setattr(prefix, "free_memory", lambda _device: 1000)
    model, done, _ = train(FROZEN)
    assert "over a quarter of what is free" in facts(done)["main"]
    assert same(model, plainly(monkeypatch, FROZEN)[0])


@pytest.mark.parametrize("stop", ["epoch 2/3", "epoch 3/3"])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, stop):
    whole, wanted, _ = train(FROZEN)
    file = interrupted(tmp_path, stop)
    resumed, done, seen = train(FROZEN, checkpoint=file)
    assert same(resumed, whole) and losses(done) == losses(wanted)
    assert facts(done) == {"main": KEPT} and seen == 24 + 8


def test_what_began_without_a_prefix_goes_on_without(tmp_path, monkeypatch):
    plain, _, _ = plainly(monkeypatch, FROZEN)
    with monkeypatch.context() as patch:
        patch.setattr(prefix, "free_memory", lambda _device: 1000)
        file = interrupted(tmp_path, "epoch 3/3")
    resumed, done, seen = train(FROZEN, checkpoint=file)
    assert same(resumed, plain) and seen == 24
    assert "over a quarter of what is free" in facts(done)["main"]


def interrupted(folder, stop):
    def kill(label, _done, _total):
        if label == stop:
            raise KeyboardInterrupt

    file = folder / "model-key.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(FROZEN, on_step=kill, checkpoint=file)
    return file
