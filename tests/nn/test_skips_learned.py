import copy
import math

import pytest
import torch

from mi_audit.core.errors import ConfigError
from mi_audit.nn import skips, skips_phases
from tests.nn.test_skips import network

NAMES = ("layer4.0.residual", "layer4.1.residual")


def learning(k=0.2, **more):
    net = network("torchvision", "resnet18")
    skips.scale(net, factors=dict.fromkeys(NAMES, k), learnable=True, **more)
    return net


def test_a_factor_that_learns_begins_where_a_constant_one_is():
    net, constant, images = learning(), network("torchvision", "resnet18"), torch.randn(2, 3, 64, 64)
    skips.scale(constant, factors=dict.fromkeys(NAMES, 0.2))
    torch.testing.assert_close(net(images), constant(images), rtol=1e-5, atol=1e-6)
    logit = net.layer4[1].skip_logit_residual
    assert logit.item() == pytest.approx(math.log(0.25))  # log(0.2 / 0.8)
    net(images).square().sum().backward()
    assert logit.grad.item() != 0 and net.layer4[0].skip_logit_residual.grad.item() != 0


def test_what_it_learned_is_in_the_state_dict_and_in_the_table():
    net, images = learning(), torch.randn(2, 3, 64, 64)
    torch.nn.init.constant_(net.layer4[1].skip_logit_residual, math.log(3))
    again = learning()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(images), net(images)) and not torch.allclose(learning()(images), net(images))
    factors = {skip.name: skip.factor for skip in skips.find(again, images)}
    assert factors["layer4.1.residual"] == pytest.approx(0.75) and factors["layer3.1.residual"] == 1
    assert torch.equal(copy.deepcopy(net)(images), net(images))


def test_while_the_shortcut_is_whole_nothing_is_scaled():
    net, stock, images = learning(idle_projections=True), network("torchvision", "resnet18"), torch.randn(2, 3, 64, 64)
    skips_phases.switch(net, full=True)
    assert torch.equal(net(images), stock(images))
    skips_phases.switch(net, full=False)
    assert not torch.allclose(net(images), stock(images))


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("densenet121", {"features.denseblock4.denselayer1": 0.2}),
        ("resnet18", {"layer4.0.residual": 0.0}),
        ("resnet18", {"layer4.0.residual": 0.2, "layer4.1.residual": 1.0}),
    ],
)
def test_what_cannot_learn_is_refused_before_anything_changes(name, factors):
    net = network("torchvision", name)
    with pytest.raises(ConfigError, match="learn"):
        skips.scale(net, factors=factors, learnable=True)
    assert not skips.installed(net) and not any("skip_logit" in key for key in net.state_dict())


def test_a_manifest_cannot_say_something_else_than_true_or_false():
    with pytest.raises(ConfigError, match="learnable"):
        skips.scale(network("torchvision", "resnet18"), factors=dict.fromkeys(NAMES, 0.2), learnable="yes")
