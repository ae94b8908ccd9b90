import pytest
import timm
import torch
from torchvision.models import regnet, resnet

from mi_audit.nn import skips
from mi_audit.nn.architectures import built_in
from tests.nn.test_skips import is_exact_at_factor_one, lively, network, silent


@pytest.mark.parametrize(
    ("library", "name", "more"),
    [
        ("torchvision", "resnet18", {}),
        ("torchvision", "resnet50", {}),
        ("torchvision", "resnext50_32x4d", {}),
        ("torchvision", "regnet_x_400mf", {}),
        ("torchvision", "regnet_y_400mf", {}),
        ("timm", "resnet18", {"drop_path_rate": 0.2}),
        ("timm", "seresnet50", {"drop_path_rate": 0.2}),
        ("timm", "resnet26d", {"drop_block_rate": 0.1}),
        ("timm", "resnest14d", {}),
        ("timm", "resnest26d", {}),
        ("timm", "res2net50_26w_4s", {"drop_path_rate": 0.2}),
        ("timm", "res2next50", {}),
        ("timm", "regnetx_002", {"drop_path_rate": 0.2}),
        ("timm", "regnety_002", {}),
        ("timm", "regnetv_040", {}),
        ("timm", "gernet_s", {}),
    ],
)
def test_a_factor_of_one_changes_no_bit(library, name, more):
    assert is_exact_at_factor_one(network(library, name, **more), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("name", ["resnet18-small", "resnet34-small"])
def test_the_built_in_networks(name):
    torch.manual_seed(0)
    assert is_exact_at_factor_one(lively(built_in(name, 10, 1)), torch.randn(2, 1, 32, 32))


BLOCKS = {
    "torchvision basic": (lambda: resnet.BasicBlock(8, 8), "bn2"),
    "torchvision bottleneck": (lambda: resnet.Bottleneck(8, 2), "bn3"),
    "torchvision regnet": (
        lambda: regnet.ResBottleneckBlock(8, 8, 1, torch.nn.BatchNorm2d, torch.nn.ReLU, 8, 1.0, None),
        "f.c.1",
    ),
    "timm basic": (lambda: timm.models.resnet.BasicBlock(8, 8), "bn2"),
    "timm bottleneck": (lambda: timm.models.resnet.Bottleneck(8, 2), "bn3"),
    "timm resnest": (lambda: timm.models.resnest.ResNestBottleneck(8, 2, avd=False), "bn3"),
    "timm res2net": (lambda: timm.models.res2net.Bottle2neck(64, 16, norm_layer=torch.nn.BatchNorm2d), "bn3"),
    "timm regnet": (lambda: timm.models.regnet.Bottleneck(8, 8, group_size=8), "conv3.bn"),
}


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("k", [0.0, 0.25])
def test_without_its_branch_a_block_gives_the_scaled_input(kind, k):
    torch.manual_seed(0)
    build, last = BLOCKS[kind]
    inputs = torch.randn(2, 64 if "res2net" in kind else 8, 4, 4)
    assert torch.equal(silent(build(), "residual", last, k, inputs), k * inputs.relu())


def test_the_projection_is_what_is_scaled_in_a_block_that_changes_the_shape():
    net, images = network("timm", "resnet18"), torch.rand(2, 256, 4, 4)
    block = net.layer4[0]
    expected = (0.3 * block.downsample(images)).relu()
    torch.testing.assert_close(silent(block, "residual", "bn2", 0.3, images), expected)


def test_kinds_tell_projections_from_identities():
    found = skips.find(network("timm", "regnety_002"), torch.zeros(1, 3, 32, 32))
    assert {s.block for s in found if s.kind == "projection"} == {f"s{stage}.b1" for stage in (1, 2, 3, 4)}


def test_the_last_stage_of_a_regnet_of_torchvision():
    found = skips.last_stage(skips.find(network("torchvision", "regnet_y_400mf"), torch.zeros(1, 3, 32, 32)))
    assert [skip.block for skip in found] == [f"trunk_output.block4.block4-{place}" for place in range(6)]
