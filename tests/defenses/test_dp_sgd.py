import pytest
import torch
from opacus.accountants import RDPAccountant
from torch.nn import functional as F

from mi_audit.audit.composition import compose
from mi_audit.core.defense import Slot, Training
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.dp_sgd import DPSGD
from mi_audit.nn.architectures import built_in
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.edits import apply
from mi_audit.nn.freezing import train_mode
from mi_audit.train.defended import check_steps, fit_defended, freeze
from mi_audit.train.feeding import Feed
from mi_audit.train.private_steps import PrivateSteps, noise_for
from mi_audit.train.recipe import Recipe
from tests.nn.test_anatomy import plain_cnn
from tests.toy import dataset

PLAN = Training(images=24, largest_class=6, batch_size=8, epochs=2, seed=1)
EXAMPLE = torch.zeros(1, 3, 8, 8)


def trained(net, **settings):
    defense, data = DPSGD(**{**DPSGD.smoke, **settings}), dataset()
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    feed = Feed(data, 8, "none", torch.contiguous_format, 0, "cpu")
    train_mode(net)
    steps = defense.stepper(net, optimiser, PLAN)
    for epoch in range(PLAN.epochs):
        for images, labels in steps.batches(feed.take, epoch):
            steps.step(images, labels, F.cross_entropy)
    steps.close()
    return steps.facts()


def test_replaces_every_batch_norm_that_trains():
    net = plain_cnn()
    assert list(DPSGD().edits(net, EXAMPLE)) == [{"edit": "group-norm", "modules": ["1", "4", "7", "10", "13"]}]
    net[:12].requires_grad_(False)
    assert list(DPSGD().edits(net, EXAMPLE)) == [{"edit": "group-norm", "modules": ["13"]}]
    net[13].requires_grad_(False)
    assert list(DPSGD().edits(net, EXAMPLE)) == []


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_ends_within_the_budget_and_close_to_it(epsilon):
    net = plain_cnn()
    apply(net, DPSGD().edits(net, EXAMPLE))
    facts = trained(net, epsilon=epsilon)
    assert 0.97 * epsilon < facts["epsilon"] <= epsilon
    assert facts["delta"] == pytest.approx(1 / 26.4) and facts["steps"] == 6


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("secret", [False, True])
def test_one_budget_lasts_for_the_fine_tuning_of_ca_as_well(tmp_path, secret):
    settings = {"dp-sgd": {**DPSGD.smoke, "epsilon": 8.0, "secret": secret}, "ca": {"epochs": 3, "lr": 0.1}}
    composition = compose("ca+dp-sgd", settings)
    (doubt,) = composition.doubts
    assert "the confidence is not followed" in doubt

    def stop(label, *_):
        if label == "confidence, epoch 3/3":
            raise Interrupted

    def train(on_step, checkpoint=None):
        torch.manual_seed(0)
        net = plain_cnn()
        apply(net, composition.parts["dp-sgd"].edits(net, EXAMPLE))
        recipe = Recipe(epochs=2, batch_size=8, lr=0.1, precision="32")
        fitted = fit_defended(
            net, dataset(), dataset(), recipe, composition.parts, seed=0, device="cpu", on_step=on_step,
            checkpoint=checkpoint,
        )  # fmt: skip
        return net, fitted

    net, fitted = train(lambda *_: None)
    main, tuned = (fit.facts for _, fit in fitted.phases)
    assert 0 < main["epsilon_so_far"] < 0.97 * 8 < tuned["epsilon"] <= 8
    assert "epsilon" not in main and main["summary"].startswith("so far epsilon") and "6 of 15 steps" in main["summary"]
    assert "so far" not in tuned["summary"] and fitted.guarantee == tuned
    assert (main["steps"], tuned["steps"]) == (6, 15)
    assert main["noise_multiplier"] == tuned["noise_multiplier"] == noise_for(8.0, 1 / 26.4, 1 / 3, 15, "rdp")
    with pytest.raises(Interrupted):
        train(stop, tmp_path / "half")
    again, resumed = train(lambda *_: None, tmp_path / "half")
    assert resumed.guarantee == tuned and resumed.phases[0][1].facts == main
    assert secret or all(torch.equal(*pair) for pair in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("method", "settings", "freeze_at", "arch", "phase"),
    [
        ("tldmi+dp-sgd", {"tldmi": {"head_epochs": 2}}, "50%", "cnn", "head-warm-up"),
        ("tts+dp-sgd", {"tts": {"full_epochs": 2}}, None, "resnet18-small", "full-skips"),
    ],
)
def test_one_budget_lasts_for_a_phase_before_the_main_one(tmp_path, method, settings, freeze_at, arch, phase):
    data = dataset(per_class=2, size=16)  # eight images in two batches; three epochs are six steps
    parts = compose(method, {**settings, "dp-sgd": {**DPSGD.smoke, "epsilon": 8.0}}, freeze_at).parts

    def train(stop="", checkpoint=None):
        def on_step(label, *_):
            if label == stop:
                raise Interrupted

        torch.manual_seed(0)
        net = built_in(arch, 4, 3)
        freeze(net, parts, data.images(slice(0, 2)))
        for part in parts.values():
            apply(net, part.edits(net, data.images(slice(0, 2))))
        model = Classifier(net, size=16, channels=3, mean=(0.5,), std=(0.5,))
        freeze(model, parts, data.images(slice(0, 2)))
        recipe = Recipe(epochs=3, batch_size=4, lr=0.1, precision="32")
        fitted = fit_defended(
            model, data, data, recipe, parts, seed=0, device="cpu", on_step=on_step, checkpoint=checkpoint
        )  # fmt: skip
        return model.state_dict(), fitted

    weights, fitted = train()
    assert [name for name, _ in fitted.phases] == [phase, "main"]
    first, last = (fit.facts for _, fit in fitted.phases)
    noise = noise_for(8.0, 1 / 8.8, 1 / 2, 6, "rdp")
    assert first["noise_multiplier"] == last["noise_multiplier"] == noise
    assert (first["steps"], last["steps"]) == (4, 6)
    so_far = RDPAccountant()
    so_far.history = [(noise, 1 / 2, 4)]
    assert first["epsilon_so_far"] == pytest.approx(so_far.get_epsilon(1 / 8.8))
    assert 0.97 * 8 < fitted.guarantee["epsilon"] <= 8
    for place in (f"{phase}, epoch 2/2", "epoch 1/1"):  # in the middle of the phase, and once it is over
        with pytest.raises(Interrupted):
            train(place, tmp_path / "half")
    again, resumed = train(checkpoint=tmp_path / "half")
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert [fit.facts for _, fit in resumed.phases] == [first, last]


def test_a_frozen_public_backbone_keeps_its_batch_norms():
    net = plain_cnn()
    net[:12].requires_grad_(False)
    apply(net, DPSGD().edits(net, EXAMPLE))
    public = {name: value.clone() for name, value in net[:12].state_dict().items()}
    trained(net)
    assert any("running_mean" in name for name in public)
    assert all(torch.equal(value, public[name]) for name, value in net[:12].state_dict().items())


def test_batch_norm_that_trains_all_the_same_is_refused():
    with pytest.raises(ConfigError, match="expected no batch normalisation that trains"):
        trained(plain_cnn())


def test_stands_alone_in_its_slot_and_names_what_it_breaks():
    assert Slot.STEP in DPSGD.slots and Slot.STEP.exclusive
    assert {"mid", "bido", "atat", "trap-mid"} == set(DPSGD.excludes)
    (doubt,) = compose("dp-sgd+negls", {}).doubts
    assert doubt.startswith("dp-sgd with negls has no published measurement: ")
    assert DPSGD().secret


@pytest.mark.parametrize("method", ["mid+dp-sgd", "dp-sgd+mid"])
def test_the_divergence_of_mid_is_named_as_what_would_escape_the_noise(method):
    with pytest.raises(ConfigError, match=r"dp-sgd with mid: its KL term .* would escape the noise that the privacy b"):
        compose(method, {})


@pytest.mark.parametrize(("method", "cut"), [("tldmi+dp-sgd", "auto"), ("dp-sgd", "auto:1"), ("tldmi+dp-sgd", None)])
def test_a_search_of_the_cut_is_refused_for_no_budget_covers_what_it_trains(method, cut):
    settings = {} if cut else {"tldmi": {"freeze": "auto"}}
    with pytest.raises(ConfigError, match=r"got tldmi with --freeze auto, .* without noise, .* give --freeze a cut"):
        compose(method, settings, cut)
    assert compose(method, {}, "80%").parts["tldmi"].freeze == "80%"


@pytest.mark.parametrize("epsilon", [8.0, 1e-9])
def test_that_no_noise_keeps_the_budget_or_a_batch_norm_trains_is_found_without_a_step(epsilon, monkeypatch):
    monkeypatch.setattr(PrivateSteps, "step", None)
    net, parts = plain_cnn(), {"dp-sgd": DPSGD(epsilon=epsilon, delta=1e-5, accountant="rdp")}
    recipe = Recipe(epochs=2, batch_size=8, precision="32")
    with pytest.raises(ConfigError, match="batch normalisation that trains" if epsilon > 1 else "some noise keeps"):
        check_steps(net, dataset(), recipe, parts)
    if epsilon > 1:
        apply(net, DPSGD().edits(net, EXAMPLE))
        check_steps(net, dataset(), recipe, parts)


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": 0.0},
        {"epsilon": float("inf")},
        {"max_grad_norm": 0.0},
        {"delta": 1.0},
        {"at_once": 0},
        {"accountant": "moments"},
    ],
)
def test_refuses_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match=r"expected .* got .*; "):
        DPSGD(**settings)
