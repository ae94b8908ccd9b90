"""Which real defenses go together, and that those that do build on the networks they are meant for and train."""

from itertools import combinations

import pytest
import timm
import torch
import torchvision

from mi_audit.audit import registry
from mi_audit.audit.composition import compose
from mi_audit.core.defense import Slot
from mi_audit.core.errors import ConfigError
from mi_audit.nn import edits, skips
from mi_audit.nn.architectures import built_in
from mi_audit.nn.classifier import Classifier
from mi_audit.train.defended import fit_defended, freeze
from mi_audit.train.recipe import Recipe
from tests.nn.test_anatomy import timm_net, torchvision_net
from tests.nn.test_skips_attention import TIMM_VIT
from tests.test_contract_defenses import CLASSES, private

TRAINED = ("tldmi", "mid", "bido", "negls", "rolss", "ssf", "tts", "loft", "ca", "midre", "trap-mid", "atat", "dp-sgd")
FORBIDDEN = {  # pair -> what the reason says
    ("mid", "loft"): "one defense that fills the slot head",
    ("bido", "dp-sgd"): "no gradient",
    ("mid", "dp-sgd"): "would escape the noise",
    ("negls", "ca"): "lowers the confidence that negative smoothing raises",
    ("loft", "dp-sgd"): "set loft.norm=layer",
    ("trap-mid", "dp-sgd"): "no noise covers",
    ("atat", "dp-sgd"): "no noise covers",
    ("trap-mid", "atat"): "undo each other's",
    ("rolss", "ssf"): "scales the skip connections that rolss removes",
    ("rolss", "tts"): "only later",
    ("ssf", "tts"): "set ssf.tts",
}
DOUBTED = {
    ("tldmi", "trap-mid"), ("mid", "negls"), ("mid", "atat"), ("bido", "atat"), ("negls", "atat"), ("negls", "dp-sgd"),
    ("ca", "trap-mid"), ("ca", "dp-sgd"),
}  # fmt: skip
SETTINGS = {"atat": {"accept_fragility": True, "steps": 1}, "dp-sgd": registry.defenses()["dp-sgd"].smoke}


def composed(*names, **settings):
    return compose("+".join(names), {name: SETTINGS[name] for name in names if name in SETTINGS} | settings)


def listed(pairs, one, other):
    return next((pair for pair in ((one, other), (other, one)) if pair in pairs), None)


def test_the_table_is_about_every_defense_of_a_training():
    assert set(TRAINED) == {name for name, part in registry.defenses().items() if Slot.OUTPUT not in part.slots}


@pytest.mark.parametrize(("one", "other"), list(combinations(TRAINED, 2)))
def test_every_pair_is_refused_with_its_reason_or_composed_with_its_doubt(one, other):
    pair = listed(FORBIDDEN, one, other)
    for names in ((one, other), (other, one)):
        if pair:
            with pytest.raises(ConfigError, match=FORBIDDEN[pair]):
                composed(*names)
        else:
            made = composed(*names)
            assert set(made.parts) == {one, other}
            assert bool(made.doubts) == bool(listed(DOUBTED, one, other))


def test_two_rules_for_the_answers_are_refused_and_one_goes_with_a_training():
    with pytest.raises(ConfigError, match="one defense that fills the slot output"):
        compose("label-only+rounding", {})
    assert list(compose("rounding+tldmi", {}).parts) == ["tldmi", "rounding"]


def planned(composition, net, example):
    """Everything that a training does to a network before its first step."""
    for part in composition.parts.values():
        edits.apply(net, part.edits(net, example))
    decided = freeze(net, composition.parts, example)
    taps = [part.taps(net, example) for part in composition.parts.values() if Slot.TERM in part.slots]
    return decided, taps


# the networks of the published settings, at their size, without memory
def test_a_share_of_depth_of_a_resnet():
    decided, _ = planned(compose("tldmi", {}, "80%"), *torchvision_net("resnet18", 224))
    assert decided["tldmi"]["units_frozen"] == 6


def test_skip_surgery_with_a_term_on_every_stage():
    net, example = torchvision_net("resnet101", 224)
    _, taps = planned(compose("rolss+bido", {}, "none"), net, example)
    assert skips.installed(net) == {f"layer4.{place}.residual": 0.0 for place in range(3)}
    assert taps == [("layer1", "layer2", "layer3", "layer4")]


def test_a_low_rank_head_and_its_fine_tuning_behind_three_frozen_stages():
    composition = compose("calor", {}, "stage:3")
    net = torchvision.models.resnet152(num_classes=530)  # with memory: its head is found by what the logits depend on
    decided, _ = planned(composition, net, torch.zeros(1, 3, 32, 32))
    assert net.fc.classify.in_features == 50 and decided["tldmi"]["units_frozen"] == 47
    (phase,) = composition.parts["ca"].phases()
    assert (phase.epochs, phase.recipe["lr"]) == (5, 2e-5)


def test_three_mechanisms_on_a_vision_transformer():
    decided, _ = planned(compose("tldmi+negls+midre", {}, "75%"), *timm_net("vit_base_patch16_224"))
    assert decided["tldmi"]["units_frozen"] == 9


def test_scaled_skips_of_a_maxvit():
    net, example = timm_net("maxvit_tiny_rw_224")
    composition = compose("ssf", {"k": 0.2, "tts": 5})
    planned(composition, net, example)
    assert len(skips.installed(net)) == 10 and set(skips.installed(net).values()) == {0.2}  # two layers of five adds
    assert composition.parts["ssf"].phases()[0].epochs == 5


def test_surgery_inside_the_frozen_part_is_refused():
    with pytest.raises(ConfigError, match=r"layer4\.0 inside"):
        planned(compose("rolss", {}, "linear-probe"), *torchvision_net("resnet18"))


def resnet():
    return built_in("resnet18-small", CLASSES, 3), 16


def transformer():
    return timm.create_model("vit_tiny_patch16_224", **TIMM_VIT | {"num_classes": CLASSES}), 32


@pytest.mark.parametrize(
    ("method", "freeze_at", "build", "settings"),
    [
        ("tldmi", "80%", resnet, {}),
        ("tldmi+bido", "60%", resnet, {}),
        ("rolss+bido", None, resnet, {}),
        ("calor", "stage:3", resnet, {"ca": {"epochs": 1}}),
        ("tldmi+loft+midre", "80%", resnet, {}),
        ("tldmi+negls+midre", "50%", transformer, {}),
        ("ssf", None, transformer, {"ssf": {"tts": 1}}),
        ("tldmi+mid", "80%", resnet, {}),
        ("trap-mid+negls", None, resnet, {}),
        ("tldmi+dp-sgd", "80%", resnet, {"dp-sgd": SETTINGS["dp-sgd"]}),
    ],
)
def test_what_goes_together_trains(method, freeze_at, build, settings):
    torch.manual_seed(0)
    composition, (net, size), data = compose(method, settings, freeze_at), build(), private()
    model = Classifier(net, size=size, channels=3, mean=(0.5,), std=(0.5,))
    images = data.images(slice(0, 2))
    freeze(model, composition.parts, images)
    for part in composition.parts.values():
        edits.apply(net, part.edits(net, model.prepare(images)))
    freeze(model, composition.parts, images)
    held = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    free = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    phases = [phase for part in composition.parts.values() for phase in part.phases()]
    before = sum(phase.epochs for phase in phases if phase.when == "before")
    recipe = Recipe(epochs=1 + before, batch_size=CLASSES // 2, precision="32")
    fitted = fit_defended(
        model, data, data, recipe, composition.parts, seed=0, device="cpu", on_step=lambda *_: None
    )  # fmt: skip
    assert bool(held) == bool(freeze_at) and free
    assert all(torch.equal(model.get_parameter(name), value) for name, value in held.items())
    assert any(not torch.equal(model.get_parameter(name), value) for name, value in free.items())
    assert fitted.val_accuracy is not None and model.eval()(data.images(slice(0, 4))).isfinite().all()
