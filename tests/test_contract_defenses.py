"""What every defense promises, checked on every defense the registry finds."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn import functional as F

from mi_audit.audit import registry
from mi_audit.audit.composition import compose
from mi_audit.audit.plan import COMBINATIONS
from mi_audit.core.dataset import Dataset
from mi_audit.core.defense import Defense, Moment, Slot, Step
from mi_audit.core.errors import ConfigError
from mi_audit.store.targets import LoadedModel, load_model, new_model, save_model
from mi_audit.train.defended import fit_defended, freeze, tapped
from mi_audit.train.recipe import Recipe
from tests.toy import dataset

KINDS = {"information", "data", "gradient-masking", "deception", "output-side"}
SLOT_OF = {  # the method of the contract that fills each slot
    "edits": {Slot.SURGERY, Slot.HEAD, Slot.STEP, Slot.OUTPUT},
    "freeze_layers": {Slot.FREEZE},
    "stepper": {Slot.STEP},
    "transform": {Slot.DATA},
    "objective": {Slot.LOSS, Slot.PHASE},
    "taps": {Slot.TERM},
    "term": {Slot.TERM},
    "phases": {Slot.PHASE},
    "enter": {Slot.PHASE},
}
CLASSES = 24  # enough for a head with a bottleneck

every_defense = pytest.mark.parametrize("name", registry.defenses())


def built(name: str) -> Defense:
    method = registry.defenses()[name]
    return registry.build("defense", method, name, method.smoke)


def private() -> Dataset:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (CLASSES, 3, 16, 16), generator=rng, dtype=torch.uint8)
    labels = torch.arange(CLASSES)
    return replace(dataset(), pixels=pixels, labels=labels, classes=tuple(f"person {n}" for n in range(CLASSES)))


def fresh(name: str) -> tuple[Defense, LoadedModel]:
    torch.manual_seed(0)
    method = built(name)
    model = new_model(
        "built-in:resnet18-small", num_classes=CLASSES, channels=3, size=16, mean=(0.5,), std=(0.5,), seed=0
    )
    example = model.classifier.prepare(private().images(slice(0, 2)))
    return method, model.edited(method.edits(model.classifier.net, example))


@cache
def trained(name: str) -> tuple[Defense, LoadedModel, dict[str, dict[str, object]]]:
    method, model = fresh(name)
    data, parts = private(), {name: method}
    frozen = freeze(model.classifier, parts, data.images(slice(0, 2)))
    recipe = Recipe(epochs=2 + sum(p.epochs for p in method.phases()), batch_size=12, precision="32")
    fit_defended(model.classifier, data, data, recipe, parts, seed=0, device="cpu", on_step=lambda *_: None)
    return method, model, frozen


@every_defense
def test_cites_a_paper_and_says_how_it_works(name):
    defense = registry.defenses()[name]
    assert defense.paper.url.startswith("https://")
    assert defense.kind in KINDS
    assert defense.adaptive
    assert isinstance(defense.needs_public_init, bool)
    assert all(isinstance(text, str) and len(text) > 20 for text in defense.deviations)
    assert isinstance(defense.deviations, tuple)
    assert defense.__doc__ and defense.__doc__ != Defense.__doc__


@every_defense
def test_what_only_hides_or_deceives_has_to_be_told(name):
    defense = registry.defenses()[name]
    if defense.kind in ("gradient-masking", "deception", "output-side"):
        assert defense.caution
    assert not defense.caution or (defense.caution[0].isupper() and defense.caution.endswith("."))
    assert defense.caution.count(". ") <= 1, "two sentences at most"
    if defense.kind == "output-side":
        assert "weights" in defense.caution and "API" in defense.caution


@every_defense
def test_fills_the_slots_it_declares_and_no_other(name):
    defense = registry.defenses()[name]
    overridden = {method for method in SLOT_OF if getattr(defense, method) is not getattr(Defense, method)}
    assert defense.slots
    for method in overridden:
        assert defense.slots & SLOT_OF[method], method
    for slot in defense.slots:
        assert any(slot in SLOT_OF[method] for method in overridden), slot


@every_defense
def test_knows_every_defense_it_names(name):
    defense = registry.defenses()[name]
    named = {*defense.excludes, *defense.untested}
    assert named <= set(registry.defenses()) and name not in named


@every_defense
def test_trains_a_model_that_loads_again_with_the_same_logits(name, tmp_path):
    _, model, frozen = trained(name)
    images = private().images(slice(0, 6))
    before = model.classifier.eval()(images)
    assert before.shape == (6, CLASSES) and before.isfinite().all()
    assert json.loads(json.dumps(frozen, allow_nan=False)) == frozen
    save_model(tmp_path / "m.safetensors", model, {"defense": {"method": name}})
    loaded = load_model(str(tmp_path / "m.safetensors"))
    assert torch.equal(loaded.classifier.eval()(images), before)
    assert [dict(edit) for edit in loaded.edits] == [dict(edit) for edit in model.edits]


@every_defense
def test_learns_and_leaves_no_hook_behind(name):
    _, untrained = fresh(name)
    _, model, _ = trained(name)
    before, after = untrained.classifier.state_dict(), model.classifier.state_dict()
    assert any(not torch.equal(after[key], value) for key, value in before.items() if key in after)
    parts = list(model.classifier.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in parts)


@every_defense
def test_the_same_seed_trains_the_same_weights(name):
    first, second = (train(name)[1].classifier.state_dict() for train in (trained, trained.__wrapped__))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", [name for name, one in registry.defenses().items() if Slot.TERM in one.slots])
def test_says_whether_its_term_runs_the_network_again(name, monkeypatch):
    method, model = fresh(name)
    passes, term = [], type(method).term

    def counted(self, step):
        hook = step.model.register_forward_hook(lambda *_: passes.append(1))
        try:
            return term(self, step)
        finally:
            hook.remove()

    monkeypatch.setattr(type(method), "term", counted)
    recipe = Recipe(epochs=1 + sum(p.epochs for p in method.phases()), batch_size=CLASSES, precision="32")
    fit_defended(
        model.classifier, private(), private(), recipe, {name: method}, seed=0, device="cpu", on_step=lambda *_: None
    )
    assert bool(passes) == method.looks_again


@pytest.mark.parametrize("name", [name for name, one in registry.defenses().items() if one.only_notes])
def test_a_term_that_only_notes_adds_nothing_and_has_no_gradient(name):
    method, model = fresh(name)
    images, labels = private().images(slice(0, 6)), torch.arange(6)
    with tapped(model.classifier.train(), set(method.taps(model.classifier, images))) as taps:
        outputs = model.classifier(images)
    rng = torch.Generator().manual_seed(0)
    terms = []
    for phase in ("main", *(phase.name for phase in method.phases())):
        for size in (0.1, 1.0, 30.0):
            logits = (outputs.detach() + size * torch.randn(outputs.shape, generator=rng)).requires_grad_(True)
            base, moment = F.cross_entropy(logits, labels), Moment(phase, 0, 1, rng)
            companion = method.companion(model.classifier, CLASSES, images)
            terms.append(method.term(Step(model.classifier, images, labels, logits, taps, base, moment, companion)))
    found = [term for term in terms if term is not None]
    assert found and Slot.TERM in method.slots
    assert all(float(term.value) == 0 and not term.value.requires_grad for term in found)


@every_defense
def test_is_frozen_and_known_by_its_settings(name):
    assert built(name) == built(name)
    with pytest.raises(AttributeError):
        built(name).paper = None


@every_defense
def test_stands_alone_by_its_name(name):
    composed = compose(name, dict(registry.defenses()[name].smoke))
    assert composed.method == name and composed.kind == registry.defenses()[name].kind


def test_published_combinations_are_made_of_defenses():
    assert all(set(parts) <= set(registry.defenses()) for parts in COMBINATIONS.values())
    assert not set(COMBINATIONS) & set(registry.defenses())


def test_a_defense_can_be_trained_when_the_data_has_no_validation_images():
    method, model = fresh("tldmi")
    data = private()
    nobody = data.select(torch.arange(0))
    freeze(model.classifier, {"tldmi": method}, data.images(slice(0, 2)))
    fitted = fit_defended(
        model.classifier, data, nobody, Recipe(epochs=1, precision="32"), {"tldmi": method}, seed=0, device="cpu",
        on_step=lambda *_: None,
    )  # fmt: skip
    assert fitted.val_accuracy is None


def test_an_unknown_defense_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'tldmi'"):
        compose("tldmy", {})
