import json

import pytest
import timm
import torch
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.nn.edits import SEAL, apply
from mi_audit.nn.group_norm import GroupNormThen, group_norm, training_batch_norms
from tests.nn.test_anatomy import plain_cnn


def test_finds_what_would_train_and_leaves_the_modes_alone():
    net = plain_cnn().eval()
    net[:6].requires_grad_(False)
    assert training_batch_norms(net) == ("7", "10", "13")
    assert not any(module.training for module in net.modules())


def test_normalises_groups_of_channels_by_their_own_values():
    net = nn.Sequential(nn.BatchNorm2d(64), nn.Flatten(), nn.BatchNorm1d(128))
    net[0].weight.data.fill_(2.0)
    group_norm(net, modules=["0", "2"])
    assert net[0].num_groups == 32 and net[2].num_groups == 1
    images = torch.rand(3, 64, 1, 2, generator=torch.Generator().manual_seed(0))
    pairs = images.view(3, 32, 4)
    spread = (pairs.var(dim=2, unbiased=False, keepdim=True) + net[0].eps).sqrt()
    expected = (2 * (pairs - pairs.mean(dim=2, keepdim=True)) / spread).view(3, 64, 1, 2)
    torch.testing.assert_close(net[0](images), expected)
    assert net[2](torch.rand(3, 128)).std() > 0.5


def test_an_image_does_not_see_its_batch_any_more():
    net = plain_cnn().train()
    group_norm(net, modules=training_batch_norms(net))
    assert not training_batch_norms(net)
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(net(images)[:1], net(images[:1]))


def test_a_manifest_repeats_it():
    net = plain_cnn()
    edits = json.loads(json.dumps([{"edit": "group-norm", "modules": list(training_batch_norms(net))}]))
    apply(net, edits)
    fresh = plain_cnn()
    apply(fresh, edits)
    fresh.load_state_dict(net.state_dict())
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(net.eval()(images), fresh.eval()(images)) and SEAL in net.state_dict()


def test_keeps_the_activation_inside_the_norms_of_timm():
    net = timm.create_model("mobilenetv3_small_050", num_classes=4)
    names, keys = training_batch_norms(net), {key for key in net.state_dict() if "running" not in key}
    with torch.random.fork_rng():
        group_norm(net, modules=names)
    assert isinstance(net.bn1, GroupNormThen) and not training_batch_norms(net)
    assert set(net.state_dict()) == {key for key in keys if "num_batches" not in key}
    seen = []
    net.bn1.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    net.eval()(torch.rand(1, 3, 32, 32))
    inputs, output = seen[0]
    plain = nn.functional.group_norm(inputs, net.bn1.num_groups, net.bn1.weight, net.bn1.bias, net.bn1.eps)
    torch.testing.assert_close(output, nn.functional.hardswish(plain))


@pytest.mark.parametrize(("name", "found"), [("0", "Conv2d"), ("99", "nothing")])
def test_refuses_what_is_no_batch_norm(name, found):
    with pytest.raises(ConfigError, match=f"expected a batch normalisation at '{name}', got {found}"):
        group_norm(plain_cnn(), modules=[name])


@pytest.mark.parametrize("modules", ["1", 5])
def test_refuses_a_damaged_manifest(modules):
    with pytest.raises(ConfigError, match="expected a list of names as modules, got"):
        group_norm(plain_cnn(), modules=modules)
