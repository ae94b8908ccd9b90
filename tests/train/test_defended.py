"""The trainer under defenses, with small ones whose effect is known."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.core.defense import MAIN, Defense, Phase, Slot, Term
from mi_audit.core.errors import ConfigError
from mi_audit.train import defended
from mi_audit.train.classifier import fit
from mi_audit.train.defended import fit_defended, freeze, only, schedule, tapped
from mi_audit.train.feeding import Feed
from mi_audit.train.recipe import Recipe
from tests.nn.test_anatomy import plain_cnn
from tests.toy import dataset

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05, precision="32")


class Part(Defense):
    paper = None
    smoke: ClassVar = {}
    kind: ClassVar = "information"
    adaptive: ClassVar = "none"


@dataclass(frozen=True)
class Doubling(Part):
    """Adds the base loss once more."""

    slots: ClassVar = frozenset({Slot.TERM})

    def term(self, step):
        return Term(step.base, {"twice": 2 * step.base})


@dataclass(frozen=True)
class Darkening(Part):
    """Black pictures, with one random pixel per picture."""

    slots: ClassVar = frozenset({Slot.DATA})
    seen: ClassVar[list[torch.Tensor]] = []

    def transform(self, images, labels, moment):
        noise = torch.rand(len(labels), generator=moment.rng)
        self.seen.append(noise)
        return torch.zeros_like(images)


@dataclass(frozen=True)
class Phased(Part):
    """An epoch before, with the head alone, and one after at a rate of its own."""

    slots: ClassVar = frozenset({Slot.PHASE})
    log: ClassVar[list[str]] = []

    def phases(self):
        return (
            Phase(name="warm-up", when="before", epochs=1, part="17"),
            Phase(name="polish", when="after", epochs=2, recipe={"lr": 1e-9, "schedule": "constant"}, keep="last"),
        )

    def enter(self, model, phase):
        """Wipes a weight when the polish begins, as a defense does that changes the network between phases."""
        self.log.append(phase)
        if phase == "polish":
            model[17].bias.data.zero_()

    def objective(self, logits, _labels, moment):
        return logits.square().mean() if moment.phase == "polish" else None


@dataclass(frozen=True)
class Early(Part):
    """Only weights of the first epoch count."""

    slots: ClassVar = frozenset({Slot.LOSS})

    def objective(self, logits, labels, _moment):
        return F.cross_entropy(logits, labels)

    def in_force(self, epoch, epochs):
        return epoch == 0 and epochs == 3


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))


@dataclass(frozen=True)
class Remembering(Part):
    """Its term grows with the number of steps so far, so that a resume shows whether the companion came along."""

    slots: ClassVar = frozenset({Slot.TERM})

    def companion(self, *_given):
        return Memory()

    def taps(self, *_given):
        return ("0",)

    def term(self, step):
        step.companion.steps += 1
        assert step.taps["0"].shape[0] == len(step.images)
        return Term(step.companion.steps * 1e-3 * step.taps["0"].square().mean())


def network():
    torch.manual_seed(0)
    return plain_cnn()


def train(parts, recipe=RECIPE, model=None, on_step=lambda *_: None, **more):
    model, data = model or network(), dataset()
    done = fit_defended(model, data, data, recipe, parts, seed=0, device="cpu", on_step=on_step, **more)
    return model, done


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_without_parts_it_is_the_plain_training_bit_for_bit():
    plain, data = network(), dataset()
    fit(plain, data, data, RECIPE, seed=0, device="cpu", on_step=lambda *_: None)
    assert same(train({})[0], plain)


def test_a_term_is_added_to_the_base_loss_and_noted():
    model, done = train({"doubling": Doubling()}, replace(RECIPE, lr=0.0))
    notes = done.phases[0][1].history[0].notes
    assert notes["doubling"] == pytest.approx(notes["base"])
    assert notes["doubling.twice"] == pytest.approx(2 * notes["base"])
    assert done.phases[0][1].history[0].train_loss == pytest.approx(2 * notes["base"])
    assert not any(module._forward_hooks for module in model.modules())


def test_pictures_are_changed_before_the_network_sees_them_with_numbers_of_their_own():
    Darkening.seen.clear()
    caught = []
    model = network()
    model.register_forward_pre_hook(lambda _m, inputs: caught.append(inputs[0].abs().max()) if model.training else None)
    train({"darkening": Darkening()}, model=model)
    assert max(caught) == 0
    drawn = torch.cat(Darkening.seen)
    assert len(drawn) == 72 and len(drawn.unique()) == 72  # 24 pictures, three epochs
    first = list(Darkening.seen)
    Darkening.seen.clear()
    train({"darkening": Darkening()})
    assert all(torch.equal(a, b) for a, b in zip(first, Darkening.seen, strict=True))


def test_phases_run_in_order_and_each_trains_what_it_says():
    Phased.log.clear()
    labels = []
    start, model = network(), network()

    def look(label, done, total):
        labels.append(label)
        if label.startswith("warm-up"):
            moved = {n for n, p in model.named_parameters() if not torch.equal(p, dict(start.named_parameters())[n])}
            assert moved == {"17.weight", "17.bias"}

    _, done = train({"phased": Phased()}, model=model, on_step=look)
    assert Phased.log == ["warm-up", MAIN, "polish"]
    assert [(name, len(fitted.history)) for name, fitted in done.phases] == [("warm-up", 1), (MAIN, 2), ("polish", 2)]
    assert labels[0] == "warm-up, epoch 1/1" and labels[3] == "epoch 1/2" and labels[-1] == "polish, epoch 2/2"
    assert done.phases[2][1].epoch == 2 and all(p.requires_grad for p in model.parameters())


def test_phases_without_a_rate_of_their_own_share_one_schedule(monkeypatch):
    rows = schedule(RECIPE, {"phased": Phased()})
    assert [(phase.name, own.epochs) for phase, own, _ in rows] == [("warm-up", 1), (MAIN, 2), ("polish", 2)]
    assert [(span.start, span.whole, span.total) for _, _, span in rows] == [(0, 3, 5), (1, 3, 5), (3, None, 5)]
    rates = []
    monkeypatch.setattr(Recipe, "rate", lambda _self, progress: rates.append(progress) or 0.0)
    train({"phased": Phased()})
    assert rates[:9] == pytest.approx([step / 9 for step in range(9)])


def test_phases_that_take_all_epochs_are_refused():
    with pytest.raises(ConfigError, match="expected more than 1 epochs, got 1: warm-up take 1; raise --epochs"):
        schedule(replace(RECIPE, epochs=1), {"phased": Phased()})


def test_a_phase_cannot_name_what_no_recipe_has():
    class Wrong(Phased):
        def phases(self):
            return (Phase(name="odd", when="after", epochs=1, recipe={"rate": 1}),)

    with pytest.raises(ConfigError, match="expected fields of a recipe in the phase odd, got rate"):
        schedule(RECIPE, {"wrong": Wrong()})


def test_only_weights_under_the_whole_defense_are_kept():
    _, done = train({"early": Early()})
    assert done.phases[0][1].epoch == 1
    data = dataset()
    first = fit(network(), data, data, RECIPE, seed=0, device="cpu", on_step=lambda *_: None)
    assert first.epoch == 3


@pytest.mark.parametrize(
    "stop", ["warm-up, epoch 1/1", "epoch 1/2", "epoch 2/2", "polish, epoch 1/2", "polish, epoch 2/2"]
)
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, stop):
    parts = {"phased": Phased(), "remembering": Remembering()}
    whole, course = train(parts)

    def kill(label, _done, _total):
        if label == stop:
            raise KeyboardInterrupt

    file = tmp_path / "model-key.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(parts, on_step=kill, checkpoint=file)
    seen = []
    resumed, done = train(parts, on_step=lambda label, *_: seen.append(label), checkpoint=file)
    assert same(resumed, whole) and done == course
    assert not list(tmp_path.iterdir())
    assert seen[0] == stop or stop == "warm-up, epoch 1/1"


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path):
    file = tmp_path / "model-key.checkpoint"
    parts = {"phased": Phased()}

    def kill(label, _done, _total):
        if label.startswith("polish"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, on_step=kill, checkpoint=file)
    other = replace(RECIPE, lr=0.01)
    resumed, _ = train(parts, other, checkpoint=file)
    assert same(resumed, train(parts, other)[0])


def test_taps_catch_what_a_module_gives_and_leave():
    model, images = network().eval(), dataset().images()
    with tapped(model, {"0"}) as caught:
        model(images)
    assert torch.equal(caught["0"], model[0](images)) and not model[0]._forward_hooks


def test_only_puts_back_what_it_held():
    model = network()
    model[0].weight.requires_grad_(False)
    with only(model, "17"):
        assert {n for n, p in model.named_parameters() if p.requires_grad} == {"17.weight", "17.bias"}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"0.weight"}


def test_freezing_asks_only_parts_that_freeze():
    assert freeze(network(), {"doubling": Doubling()}, dataset().images(slice(0, 2))) == {}


def test_batches_are_balanced_when_a_part_asks(monkeypatch):
    class Balanced(Doubling):
        images_per_class = 2

    objective = defended.DefendedObjective({"doubling": Doubling(), "balanced": Balanced()}, {}, {}, MAIN)
    assert objective.images_per_class == 2
    assert defended.DefendedObjective({"doubling": Doubling()}, {}, {}, MAIN).images_per_class is None


def test_the_last_notes_of_a_part_are_found():
    _, done = train({"doubling": Doubling(), "phased": Phased()}, replace(RECIPE, lr=0.0))
    last = done.phases[-1][1].history[-1].notes
    assert done.notes("doubling") == {"twice": last["doubling.twice"]} and done.notes("phased") == {}


def test_a_fresh_head_learns_before_everything_else():
    class Later(Phased):
        def phases(self):
            return (Phase(name="whole", when="before", epochs=1),)

    rows = schedule(replace(RECIPE, epochs=4), {"later": Later(), "phased": Phased()})
    assert [phase.name for phase, _, _ in rows] == ["warm-up", "whole", MAIN, "polish"]


def test_phases_go_on_with_the_order_of_the_images_where_the_last_one_stopped(monkeypatch):
    asked = []
    epoch = Feed.epoch
    monkeypatch.setattr(Feed, "epoch", lambda self, number: asked.append(number) or epoch(self, number))
    train({"phased": Phased()})
    assert asked == [0, 1, 2, 3, 4]
