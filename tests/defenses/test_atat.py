import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mi_audit.core.defense import Moment, Step
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.atat import ATAT, _others
from mi_audit.nn import freezing
from mi_audit.nn.precision import autocast
from tests.defenses.test_trap_mid import watched
from tests.nn.test_anatomy import plain_cnn
from tests.nn.test_shortcuts import same, state
from tests.toy import classifier, dataset


def step(net, number=0):
    data = dataset()
    images, labels = data.images(), data.labels
    logits = net(images).float()
    moment = Moment("main", 0, 1, torch.Generator().manual_seed(number))
    return Step(net, images, labels, logits, {}, F.cross_entropy(logits, labels), moment, None)


@pytest.mark.parametrize("settings", [{}, {"accept_fragility": False}])
def test_needs_a_yes_to_a_model_that_anybody_can_fool(settings):
    with pytest.raises(ConfigError, match=r"expected accept_fragility=true.*trivially attackable"):
        ATAT(**settings)


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"reach": -1.0}, {"step": 0.0}, {"steps": 0}])
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match="expected weight, reach and step > 0"):
        ATAT(accept_fragility=True, **wrong)


@given(classes=st.integers(2, 9), seed=st.integers(0, 99))
def test_aims_at_another_class(classes, seed):
    labels = torch.arange(3 * classes) % classes
    others = _others(labels, classes, torch.Generator().manual_seed(seed))
    assert (others != labels).all() and others.min() >= 0 and others.max() < classes


def test_every_other_class_is_as_likely():
    counts = _others(torch.full((3000,), 2), 4, torch.Generator().manual_seed(0)).bincount(minlength=4)
    assert counts[2] == 0
    assert ((counts[[0, 1, 3]] - 1000).square() / 1000).sum() < 13.8  # chi-square, 2 degrees of freedom, 0.1 %


def test_the_term_rewards_images_that_are_pushed_over():
    defense, net = ATAT(accept_fragility=True, weight=0.5, reach=0.25, step=0.25, steps=1), classifier()
    now = step(net)
    with watched(net) as seen:
        term = defense.term(now)
    labels = _others(now.labels, 4, torch.Generator().manual_seed(0))
    pushed, answers = seen[-1]
    assert len(seen) == 2 and (pushed - now.images).abs().max() <= 0.25 + 1e-6
    rows = torch.arange(len(labels))
    before, after = (logits.softmax(dim=1)[rows, labels] for logits in (now.logits, answers))
    assert (after > before).all()
    torch.testing.assert_close(term.value, -0.5 * after.log().mean())
    torch.testing.assert_close(term.notes["push_loss"], -after.detach().log().mean())


def test_the_published_push_is_a_quarter_of_a_thousandth():
    net = classifier()
    now = step(net)
    with watched(net) as seen:
        ATAT(accept_fragility=True).term(now)
    changes = [(images - now.images).abs().max().item() for images, _ in seen]
    assert len(seen) == 6
    assert all(0 < change <= 2.5e-4 + 1e-7 for change in changes)


def test_statistics_see_the_pushed_batch_once_and_no_search():
    net = plain_cnn().train()
    now = step(net)
    twin = copy.deepcopy(net)
    with watched(net) as seen:
        term = ATAT(accept_fragility=True).term(now)
    assert all(parameter.grad is None for parameter in net.parameters())
    expected = 0.08 * F.cross_entropy(twin(seen[-1][0]), _others(now.labels, 4, torch.Generator().manual_seed(0)))
    assert same(state(net), state(twin)) and net[1].training
    term.value.backward()
    expected.backward()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_mixed_precision_does_not_round_the_push_away():
    net = plain_cnn().train()
    with autocast("cpu", "bf16"):
        now = step(net)
        with watched(net) as seen:
            term = ATAT(accept_fragility=True, steps=2).term(now)
    assert {output.dtype for _, output in seen} == {torch.float32}
    assert term.value.dtype == torch.float32


def test_a_frozen_network_is_searched_through_and_stays_frozen():
    net = plain_cnn()
    freezing.freeze(net, "linear-probe", dataset().images(slice(0, 2)))
    freezing.train_mode(net)
    before, now = state(net), step(net)
    with watched(net) as seen:
        ATAT(accept_fragility=True).term(now).value.backward()
    assert (seen[-1][0] != now.images).any()
    assert {name for name, parameter in net.named_parameters() if parameter.grad is not None} == {
        "17.weight",
        "17.bias",
    }
    assert same(state(net), before) and not net[1].training


def test_training_makes_the_model_fall_for_pushes_and_keeps_its_task():
    """The share of images that the same push turns, of an undefended and of a defended model."""
    turned, right = {}, {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        net = plain_cnn(width=8, depth=3).train()
        defense = ATAT(accept_fragility=True, reach=0.05, step=0.02, steps=4, weight=weight or 1.0)
        optimiser = torch.optim.Adam(net.parameters(), 0.02)
        for number in range(60):
            now = step(net, number)
            loss = now.base + defense.term(now).value if weight else now.base
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        net.eval()
        now = step(net, 1000)
        with watched(net) as seen:
            defense.term(now)
        aims = _others(now.labels, 4, torch.Generator().manual_seed(1000))
        turned[weight] = (seen[-1][1].argmax(dim=1) == aims).float().mean()
        right[weight] = (now.logits.argmax(dim=1) == now.labels).float().mean()
    assert right[1.0] > 0.9 and turned[1.0] > turned[0.0] + 0.3


def test_says_that_the_gradient_is_masked_and_the_model_fragile():
    assert ATAT.kind == "gradient-masking"
    assert "trivially attackable" in ATAT.__doc__


def test_says_when_the_model_did_not_learn_to_fall():
    """Guessing one of 4 classes has the loss log 4 = 1.386; half the way is 0.693."""
    defense = ATAT(accept_fragility=True)
    assert defense.term(step(classifier())).notes["guessing_loss"].item() == pytest.approx(1.3863, abs=1e-4)
    assert defense.shortfall({"push_loss": 0.69, "guessing_loss": 1.386}) == ""
    said = defense.shortfall({"push_loss": 0.70, "guessing_loss": 1.386})
    assert "push_loss 0.70, guessing has 1.39" in said and "atat.weight, which is 0.08" in said
    assert defense.shortfall({}) == ""  # a resumed training has no notes of what was done before
