import copy

import pytest
import torch
from torch import nn

from mi_audit.nn import frozen as module
from mi_audit.nn.architectures import built_in
from mi_audit.nn.cast_once import CastConv2d, CastLinear
from mi_audit.nn.classifier import Classifier, hastened
from mi_audit.nn.folding import NORMS, close
from mi_audit.nn.frozen import frozen
from mi_audit.nn.gan import hastened as hastened_gan
from mi_audit.nn.gan import light
from mi_audit.nn.gan_conditional import light_conditional


def network(*after):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3)
    net = nn.Sequential(*layers, *(after or (nn.Flatten(),)), nn.Linear(8 * 6 * 6, 4))
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.2, 3.0)
    return net, torch.rand(2, 3, 8, 8)


def gradient(net, images):
    images = images.clone().requires_grad_()
    return torch.autograd.grad(net(images).square().sum(), images)[0]


def last(net):
    return net[0].weight.is_contiguous(memory_format=torch.channels_last)


def folded(net):
    return not any(type(module) in NORMS for module in net.modules())


def test_a_copy_with_the_same_answers_and_gradients():
    net, images = network()
    net.train()
    weights, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    quick = frozen(net, images)
    assert folded(quick) and last(quick) and not quick.training
    assert not any(weight.requires_grad for weight in quick.parameters())

    assert net.training and not folded(net) and not last(net) and all(w.requires_grad for w in net.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)

    torch.testing.assert_close(quick(images), net.eval()(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(quick, images), gradient(net, images), atol=1e-4, rtol=1e-4)


class View(nn.Module):
    def forward(self, maps):
        return maps.view(len(maps), -1)


def test_a_network_that_needs_rows_of_pixels_keeps_its_layout():
    net, images = network(View())
    quick = frozen(net, images)
    assert folded(quick) and not last(quick)
    quick(images)


class Peeking(nn.Module):
    """Reads a statistic of the norm, so that it cannot do without."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images) * self.net[1].running_var.sum()


def test_a_network_that_reads_its_norms_keeps_them():
    net, images = network()
    quick = frozen(Peeking(net), images)
    assert not folded(quick) and last(quick.net)
    torch.testing.assert_close(quick(images), Peeking(net.eval())(images), atol=1e-4, rtol=1e-5)


@pytest.fixture
def native(monkeypatch):
    monkeypatch.setattr(module, "has_native_bf16", lambda device: device == "cpu")


def kinds(net):
    return {type(layer) for layer in net.modules()}


@pytest.mark.usefixtures("native")
def test_weights_are_cast_once_where_bfloat16_is_native(monkeypatch):
    net, images = network()
    quick = frozen(net, images)
    assert {CastConv2d, CastLinear} <= kinds(quick) and not {CastConv2d, CastLinear} & kinds(net)
    monkeypatch.setattr(module, "has_native_bf16", lambda _: False)
    plain = frozen(net, images)
    assert not {CastConv2d, CastLinear} & kinds(plain)
    assert torch.equal(gradient(quick, images), gradient(plain, images))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(images), plain(images))


class Exact(nn.Module):
    """Refuses bfloat16."""

    def forward(self, maps):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError
        return maps


@pytest.mark.usefixtures("native")
def test_a_network_that_cannot_do_bfloat16_keeps_its_layers():
    net, images = network(Exact(), nn.Flatten())
    quick = frozen(net, images)
    assert folded(quick) and not {CastConv2d, CastLinear} & kinds(quick)


class Fussy(nn.Module):
    """Gives something else under bfloat16 after a convolution that is not a plain one."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        plain = type(self.net[0]) is nn.Conv2d or not torch.is_autocast_enabled("cpu")
        return self.net(images) * (1.0 if plain else 1.5)


@pytest.mark.usefixtures("native")
def test_layers_that_change_results_in_bfloat16_are_left_out():
    net, images = network()
    assert CastConv2d not in kinds(frozen(Fussy(net), images))


class Random(nn.Module):
    def forward(self, maps):
        return maps + torch.randn_like(maps)


def test_a_network_that_is_random_in_itself_is_rebuilt_too():
    net, images = network(Random(), nn.Flatten())
    assert folded(frozen(net, images))


def test_instance_normalisations_keep_their_layout():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert not last(frozen(net, torch.rand(2, 3, 8, 8)))


def test_neighbours_in_a_batch_change_nothing():
    torch.manual_seed(0)
    classifier = Classifier(built_in("cnn", 4, 3), size=32, channels=3, mean=(0.5,), std=(0.5,))
    quick, images = hastened(classifier), torch.rand(6, 3, 32, 32)
    assert folded(quick)
    parts = torch.cat([gradient(quick, part) for part in images.split(2)])
    assert close(gradient(quick, images), parts, rounding=2e-6)


def test_generators_and_critics():
    torch.manual_seed(0)
    plain = light(32, 3, width=8)
    plain.generator.eval(), plain.critic.eval()
    quick, latents = hastened_gan(plain), torch.randn(3, plain.latent)
    assert folded(quick.generator) and last(quick.critic)
    images = plain.generator(latents)
    torch.testing.assert_close(quick.generator(latents), images, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(quick.critic(images), plain.critic(images), atol=1e-4, rtol=1e-4)

    named = light_conditional(32, 3, 5, width=8)
    named.generator.eval()
    quick, labels = hastened_gan(named, critic=False), torch.tensor([4, 0, 2])
    assert quick.critic is named.critic
    torch.testing.assert_close(quick.generator(latents, labels), named.generator(latents, labels), atol=1e-5, rtol=1e-5)
