import io
import json
import math
from dataclasses import replace

import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from torch import nn
from torch.nn import functional as F

from mi_audit.core.defense import Training
from mi_audit.core.errors import ConfigError
from mi_audit.train.feeding import Feed
from mi_audit.train.private_steps import PrivateSteps, noise_for
from tests.nn.test_anatomy import plain_cnn
from tests.toy import dataset

NORM = 5.0
PLAN = Training(images=24, largest_class=6, batch_size=8, epochs=2, seed=3)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


def private(net, optimiser=None, plan=PLAN, **settings):
    optimiser = optimiser or torch.optim.SGD(net.parameters(), lr=1.0)
    about = {"noise": 1.0, "max_grad_norm": 1.0, "delta": 1e-3, "accounting": "rdp", "at_once": 5, "secret": False}
    return PrivateSteps(net, optimiser, plan, **{**about, **settings})


def feed(data=None):
    return Feed(data or dataset(), 8, "shift", torch.contiguous_format, 0, "cpu")


def train(net, steps, optimiser, epochs, first=0):
    served = feed()
    losses = []
    for epoch in range(first, first + epochs):
        for images, labels in steps.batches(served.take, epoch):
            losses.append(steps.step(images, labels, F.cross_entropy))
    return torch.stack(losses)


def by_hand(net, images, labels, norm):
    """The clipped gradients of softmax regression, one image at a time: (p - y) x^T, and p - y for the bias."""
    x, weight, bias = images.flatten(1).double(), net[1].weight.detach().double(), net[1].bias.detach().double()
    error = (x @ weight.T + bias).softmax(dim=1) - F.one_hot(labels, 4)
    total_weight, total_bias, clipped = torch.zeros(4, 192).double(), torch.zeros(4).double(), 0
    for residual, pixels in zip(error, x, strict=True):
        length = math.sqrt(float(residual.square().sum() * (pixels.square().sum() + 1)))
        factor = min(1.0, norm / length)
        clipped += factor < 1
        total_weight += factor * residual[:, None] * pixels[None, :]
        total_bias += factor * residual
    return total_weight, total_bias, clipped


@pytest.mark.parametrize("at_once", [2, 6, 50])
def test_sums_clipped_gradients_and_divides_by_the_expected_batch_size(at_once):
    net, data = linear(), dataset()
    images, labels = data.images(slice(0, 24, 4)), data.labels[::4]  # six images; a batch is expected to have eight
    weight, bias, clipped = by_hand(net, images, labels, norm=NORM)
    assert 0 < clipped < 6
    before = [parameter.detach().clone() for parameter in net.parameters()]
    loss = F.cross_entropy(net(images), labels).detach()
    steps = private(net, noise=0.0, max_grad_norm=NORM, at_once=at_once)
    told = steps.step(images, labels, F.cross_entropy)
    torch.testing.assert_close(net[1].weight.double(), before[0].double() - weight / 8, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(net[1].bias.double(), before[1].double() - bias / 8, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(told, loss * 6 / 8)


@pytest.mark.parametrize("count", [0, 3])
def test_noise_has_the_deviation_that_is_accounted_for(count):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 100))
    before, data = net[1].weight.detach().clone(), dataset()
    steps = private(net, noise=2.0, max_grad_norm=0.5)
    steps.step(data.images(slice(0, count)), data.labels[:count], lambda logits, _: 0 * logits.sum())
    moved = net[1].weight.detach() - before  # 19200 numbers: their deviation is known to half a percent
    assert moved.std().item() == pytest.approx(2.0 * 0.5 / 8, rel=0.03)
    assert abs(moved.mean().item()) < 0.004
    assert steps.facts()["steps"] == 1  # an empty batch spends, too


def test_batches_are_poisson():
    big = Training(images=4000, largest_class=1, batch_size=100, epochs=1, seed=0)
    steps = private(linear(), plan=big)
    assert steps.steps == 40
    taken = []
    list(steps.batches(lambda rows, _: (taken.append(rows), torch.zeros(0, 3, 8, 8), torch.zeros(0).long())[1:], 0))
    sizes = torch.tensor([len(rows) for rows in taken]).double()
    assert len(taken) == 40 and all(len(rows.unique()) == len(rows) for rows in taken)
    assert sizes.mean().item() == pytest.approx(100, abs=5)  # deviation of the mean: sqrt(97.5 / 40) = 1.6
    assert 5 < sizes.std().item() < 15  # sqrt(97.5) = 9.9
    times = torch.cat(taken).bincount(minlength=4000)
    assert (times == 0).double().mean().item() == pytest.approx(math.exp(-1), abs=0.03)  # (1 - 1/40)^40 = 0.363


@pytest.mark.parametrize(("accounting", "accountant"), [("rdp", RDPAccountant), ("prv", PRVAccountant)])
def test_spends_what_opacus_says_for_the_same_noise_rate_and_steps(accounting, accountant):
    net = linear()
    steps = private(net, accounting=accounting, noise=1.3)
    train(net, steps, None, epochs=2)
    reference = accountant()
    reference.history = [(1.3, 1 / 3, 6)]
    facts = steps.facts()
    assert steps.epsilon() == pytest.approx(reference.get_epsilon(1e-3), rel=1e-9)
    assert facts["epsilon"] == steps.epsilon() and facts["steps"] == 6 and facts["sample_rate"] == 1 / 3
    assert facts["epsilon_of_largest_class"] == pytest.approx(6 * steps.epsilon())
    assert "nothing is private yet" in facts["summary"]
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


@pytest.mark.parametrize("accounting", ["rdp", "prv"])
def test_the_account_goes_on_where_the_phases_before_left_it(accounting):
    whole = private(linear(), plan=replace(PLAN, epochs=5), accounting=accounting)
    train(linear(), whole, None, epochs=5)
    last = private(linear(), plan=replace(PLAN, epochs=5, before=3), accounting=accounting)
    assert last.facts()["steps"] == 9 and last.epsilon() > 0
    train(linear(), last, None, epochs=2, first=3)
    assert last.facts() == whole.facts() and whole.facts()["steps"] == 15


def test_nothing_done_is_nothing_spent():
    assert private(linear()).epsilon() == 0


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_noise_keeps_the_budget_and_wastes_little(epsilon):
    noise = noise_for(epsilon, 1e-3, 1 / 3, 6, "rdp")
    spent = [RDPAccountant() for _ in range(2)]
    spent[0].history, spent[1].history = [(noise, 1 / 3, 6)], [(0.97 * noise, 1 / 3, 6)]
    assert spent[0].get_epsilon(1e-3) <= epsilon < spent[1].get_epsilon(1e-3)


def test_a_budget_that_no_noise_keeps_is_an_error():
    with pytest.raises(ConfigError, match="expected a budget that some noise keeps, got epsilon 1e-09"):
        noise_for(1e-9, 1e-5, 1.0, 1000, "rdp")


@pytest.mark.parametrize("secret", [False, True])
def test_a_resumed_training_ends_with_the_same_weights(secret):
    def start():
        net = linear()
        return net, torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)

    net, optimiser = start()
    steps = private(net, optimiser, secret=secret)
    train(net, steps, optimiser, epochs=1)
    kept = {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "steps": steps.state()}
    kept = torch.load(written(kept), weights_only=True)
    train(net, steps, optimiser, epochs=1, first=1)

    again, other = start()
    resumed = private(again, other, secret=secret)
    again.load_state_dict(kept["net"])
    other.load_state_dict(kept["optimiser"])
    resumed.restore(kept["steps"])
    train(again, resumed, other, epochs=1, first=1)
    assert torch.equal(net[1].weight, again[1].weight) and torch.equal(net[1].bias, again[1].bias)
    assert steps.facts() == resumed.facts()


def written(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_secret_noise_is_not_repeated_and_seeded_noise_is():
    def weights(secret):
        net = linear()
        train(net, private(net, secret=secret), None, epochs=1)
        return net[1].weight

    assert torch.equal(weights(False), weights(False))
    assert not torch.equal(weights(True), weights(True))


def test_frozen_weights_stay_and_nothing_is_left_behind():
    net = plain_cnn()
    net[:12].requires_grad_(False)
    for name in ("13", "17"):
        net.get_submodule(name).train()
    net[13] = nn.GroupNorm(2, 4)
    frozen = {name: value.clone() for name, value in net[:12].state_dict().items()}
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    steps = private(net, optimiser)
    net[:12].eval()
    before = net[17].weight.detach().clone()
    train(net, steps, optimiser, epochs=1)
    steps.close()
    assert all(torch.equal(value, frozen[name]) for name, value in net[:12].state_dict().items())
    assert not torch.equal(net[17].weight, before)
    assert {name: set(vars(module)) for name, module in net.named_modules()} == attributes
    assert not any(vars(parameter) for parameter in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())


def test_a_batch_norm_that_trains_is_refused():
    with pytest.raises(ConfigError, match="expected no batch normalisation that trains under DP-SGD, got 1, 4, 7"):
        private(plain_cnn())


def test_the_gradient_of_an_image_does_not_depend_on_its_neighbours():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 4))
    steps, data = private(net), dataset()
    images, labels = data.images(slice(0, 8)), data.labels[:8]
    steps._gradients(images, labels, F.cross_entropy)
    together = [parameter.grad_sample[2] for parameter in net.parameters()]
    net.zero_grad()
    F.cross_entropy(net(images[2:3]), labels[2:3]).backward()
    for parameter, found in zip(net.parameters(), together, strict=True):
        torch.testing.assert_close(found, parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("augmentation", ["none", "shift", "faces"])
def test_a_batch_may_be_empty(augmentation):
    net = linear()
    before = net[1].weight.clone()
    steps = private(net, noise=0.0)
    served = Feed(dataset(), 8, augmentation, torch.contiguous_format, 0, "cpu")
    images, labels = served.take(torch.zeros(0, dtype=torch.int64), torch.Generator())
    assert images.shape == (0, 3, 8, 8) and steps.step(images, labels, F.cross_entropy) == 0
    assert torch.equal(net[1].weight, before) and steps.facts()["steps"] == 1  # without images there is only noise
