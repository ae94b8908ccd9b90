import pytest
import torch
from torch.nn import functional as F

from mi_audit.audit.composition import compose
from mi_audit.core.defense import Slot, Training
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.dp_sgd import DPSGD
from mi_audit.nn.edits import apply
from mi_audit.nn.freezing import train_mode
from mi_audit.train.defended import fit_defended
from mi_audit.train.feeding import Feed
from mi_audit.train.private_steps import noise_for
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
        return net, [fit.facts for _, fit in fitted.phases]

    net, (main, tuned) = train(lambda *_: None)
    assert 0 < main["epsilon"] < 0.97 * 8 < tuned["epsilon"] <= 8
    assert (main["steps"], tuned["steps"]) == (6, 15)
    assert main["noise_multiplier"] == tuned["noise_multiplier"] == noise_for(8.0, 1 / 26.4, 1 / 3, 15, "rdp")
    with pytest.raises(Interrupted):
        train(stop, tmp_path / "half")
    again, facts = train(lambda *_: None, tmp_path / "half")
    assert facts == [main, tuned]
    assert secret or all(torch.equal(*pair) for pair in zip(net.parameters(), again.parameters(), strict=True))


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
    assert {"bido", "atat", "trap-mid"} == set(DPSGD.excludes)
    (doubt,) = compose("dp-sgd+negls", {}).doubts
    assert doubt.startswith("dp-sgd with negls has no published measurement: ")
    assert DPSGD().secret


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
