import copy

import pytest
import timm
import torch
from timm.models.byobnet import RepVggBlock
from timm.models.densenet import DenseBlock
from torch import nn
from torch.nn import functional as F
from torchvision.models import densenet, mobilenetv2

from mi_audit.nn import skips
from mi_audit.nn.architectures import built_in
from tests.nn.test_skips import is_exact_at_factor_one, lively, network, silent


@pytest.mark.parametrize(
    ("library", "name", "more"),
    [
        ("torchvision", "mobilenet_v2", {}),
        ("torchvision", "mobilenet_v3_small", {}),
        ("torchvision", "mnasnet0_5", {}),
        ("torchvision", "efficientnet_b0", {}),
        ("torchvision", "efficientnet_v2_s", {}),
        ("torchvision", "densenet121", {}),
        ("timm", "mobilenetv2_050", {"drop_path_rate": 0.2}),
        ("timm", "mobilenetv2_100", {}),
        ("timm", "mobilenetv3_small_050", {}),
        ("timm", "mobilenetv3_small_100", {}),
        ("timm", "mobilenetv4_conv_small", {}),
        ("timm", "efficientnet_b0", {"drop_path_rate": 0.2}),
        ("timm", "tf_efficientnetv2_b0", {}),
        ("timm", "densenet121", {}),
        ("timm", "densenetblur121d", {}),
        ("timm", "repvgg_a0", {}),
        ("timm", "repvgg_a1", {}),
    ],
)
def test_a_factor_of_one_changes_no_bit(library, name, more):
    assert is_exact_at_factor_one(network(library, name, **more), torch.randn(2, 3, 64, 64))


def test_the_built_in_dense_network():
    torch.manual_seed(0)
    assert is_exact_at_factor_one(lively(built_in("densenet121-small", 10, 3)), torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("k", [0.0, 0.25])
@pytest.mark.parametrize(
    ("build", "last"),
    [
        (lambda: mobilenetv2.InvertedResidual(8, 8, 1, 6), "conv.3"),
        (lambda: network("torchvision", "mobilenet_v3_small").features[10], "block.3.1"),
        (lambda: network("torchvision", "efficientnet_b0").features[6][1], "block.3.1"),
        (lambda: timm.models._efficientnet_blocks.InvertedResidual(8, 8), "bn3"),
        (lambda: timm.models._efficientnet_blocks.EdgeResidual(8, 8), "bn2"),
        (lambda: timm.models._efficientnet_blocks.DepthwiseSeparableConv(8, 8), "bn2"),
    ],
    ids=["mobilenetv2", "mobilenetv3", "mbconv", "timm inverted", "timm edge", "timm depthwise"],
)
def test_without_its_branch_a_block_gives_the_scaled_input(build, last, k):
    block = build()
    channels = next(block.children()).get_parameter(next(name for name, _ in next(block.children()).named_parameters()))
    inputs = torch.randn(2, channels.shape[1] if channels.shape[1] > 1 else channels.shape[0], 4, 4)
    assert torch.equal(silent(block, "residual", last, k, inputs), k * inputs)


def dense_block(library, layers, inputs, growth):
    torch.manual_seed(0)
    if library == "timm":
        return lively(DenseBlock(layers, inputs, 4, growth))
    return lively(densenet._DenseBlock(layers, inputs, 4, growth, 0.0))


def scaled(block, k):
    skips.scale(nn.ModuleDict({"block": block}), factors={f"block.{layer}": k for layer in block})
    return block


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize(
    ("layers", "inputs", "growth", "widths"),
    [(16, 512, 32, (32, 37)), (24, 1056, 48, (48, 59)), (32, 640, 32, (32, 38)), (32, 896, 32, (32, 41))],
    ids=["121", "161", "169", "201"],
)
def test_the_head_of_a_dense_network_sees_as_many_channels_as_in_the_released_code(
    library, layers, inputs, growth, widths
):
    images = torch.rand(1, inputs, 1, 1) + 0.1
    for k, width in zip((0.0, 0.01), widths, strict=True):
        output = scaled(dense_block(library, layers, inputs, growth), k)(images)
        assert output.shape[1] == inputs + layers * growth
        assert int((output != 0).sum()) == width


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_without_carrying_over_a_dense_layer_sees_only_the_one_before(library):
    block = dense_block(library, 3, 8, 4)
    images, first, second = torch.randn(1, 8, 3, 3), *list(block.values())[:2]
    new = first(images)
    expected = second(torch.cat([torch.zeros_like(images), new], dim=1))
    third = block["denselayer3"]
    last = third(torch.cat([torch.zeros(1, 12, 3, 3), expected], dim=1))
    torch.testing.assert_close(scaled(block, 0.0)(images), torch.cat([torch.zeros(1, 16, 3, 3), last], dim=1))


def train(net):
    torch.manual_seed(0)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(5):
        optimiser.zero_grad()
        F.cross_entropy(net.train()(torch.randn(8, 3, 8, 8)), torch.arange(8) % 4).backward()
        optimiser.step()
    return net.eval()


def rep_vgg():
    torch.manual_seed(0)
    blocks = [RepVggBlock(3, 8, stride=2), *(RepVggBlock(8, 8) for _ in range(3))]
    return lively(nn.Sequential(nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))


def logits_and_gradient(net, images):
    leaf = images.clone().requires_grad_()
    logits = net(leaf)
    return logits.detach(), torch.autograd.grad(F.cross_entropy(logits, torch.zeros(2, dtype=torch.long)), leaf)[0]


def test_merging_the_branches_of_a_trained_repvgg_protects_nothing():
    net, images = train(rep_vgg()), torch.randn(2, 3, 8, 8)
    merged = copy.deepcopy(net)
    for block in merged[0]:
        block.reparameterize()
    for ours, theirs in zip(logits_and_gradient(merged, images), logits_and_gradient(net, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)  # the attacker sees the same function and slope
    assert not any(skip.kind == "norm" for skip in _found_or_none(merged, images))


def _found_or_none(net, images):
    try:
        return skips.find(net, images)
    except skips.ConfigError:
        return ()


@pytest.mark.parametrize("k", [0.0, 0.5])
def test_the_identity_branch_of_repvgg_is_dropped_during_training_and_merging_keeps_that(k):
    net, images = rep_vgg(), torch.randn(2, 3, 8, 8)
    whole, found = net(images), skips.find(net, images)
    assert [(skip.block, skip.kind) for skip in found] == [(f"0.{n}", "norm") for n in (1, 2, 3)]
    skips.scale(net, factors={skip.name: k for skip in found})
    train(net)
    before = net(images)
    assert not torch.allclose(before, whole)
    assert any("identity" in name for name in net.state_dict()) == (k > 0)
    for block in net[0]:
        block.reparameterize()
    torch.testing.assert_close(net(images), before, rtol=1e-3, atol=1e-5)
