import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.nn import edits, skips
from mi_audit.nn.anatomy import dissect
from mi_audit.nn.freezing import freeze
from tests.nn.test_anatomy import plain_cnn, timm_net, torchvision_net


def network(library, name, **more):
    """A network with ten classes whose norms do something, in eval mode."""
    torch.manual_seed(0)
    build = torchvision.models.get_model if library == "torchvision" else timm.create_model
    return lively(build(name, num_classes=10, **more))


def lively(net):
    """Give every batch norm statistics, weights and offsets that differ from channel to channel."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    return net.eval()


def is_exact_at_factor_one(net, images):
    """Scale all skip connections, put them back to one, and compare: logits, gradient and statistics, bit for bit."""
    stock, found = copy.deepcopy(net), skips.find(net, images)
    before = [unit.name for unit in dissect(net, images).units]
    skips.scale(net, factors=dict.fromkeys((skip.name for skip in found), 0.0), idle_projections=True)
    changed = not torch.allclose(net(images), stock(images))
    skips.set_factors(net, dict.fromkeys((skip.name for skip in found), 1.0))
    same = torch.equal(net(images), stock(images))
    gradients = []
    for each in (net.train(), stock.train()):
        torch.manual_seed(1)  # of stochastic depth and dropout
        leaf = images.clone().requires_grad_()
        each(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    same &= torch.equal(*gradients) and bool(gradients[0].any())
    same &= all(torch.equal(*pair) for pair in zip(net.state_dict().values(), stock.state_dict().values(), strict=True))
    same &= list(net.state_dict()) == list(stock.state_dict())
    return changed and same and before == [unit.name for unit in dissect(net, images).units]


def silent(block, add, last, k, inputs):
    """What a block with factor `k` gives when the norm at the end of its branch gives nothing."""
    skips.scale(nn.ModuleDict({"block": block}), factors={f"block.{add}": k})
    norm = block.get_submodule(last)
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)
    return block.eval()(inputs)


@pytest.mark.parametrize(
    ("name", "altered"),
    [
        ("resnet18", ["layer4.0", "layer4.1"]),
        ("resnet34", ["layer4.0", "layer4.1", "layer4.2"]),
        ("resnet50", ["layer4.0", "layer4.1", "layer4.2"]),
        ("resnet101", ["layer4.0", "layer4.1", "layer4.2"]),
        ("resnet152", ["layer4.0", "layer4.1", "layer4.2"]),
        ("resnext50_32x4d", ["layer4.0", "layer4.1", "layer4.2"]),
        ("wide_resnet50_2", ["layer4.0", "layer4.1", "layer4.2"]),
        ("mobilenet_v2", ["features.15", "features.16"]),
        ("mobilenet_v3_large", ["features.14", "features.15"]),
        ("efficientnet_b0", ["features.6.1", "features.6.2", "features.6.3"]),
        ("mnasnet1_0", ["layers.12.1", "layers.12.2", "layers.12.3"]),
        ("densenet121", ["features.denseblock4"] * 16),
    ],
)
def test_the_last_stage_of_torchvision_networks(name, altered):
    assert [skip.block for skip in skips.last_stage(skips.find(*torchvision_net(name)))] == altered


@pytest.mark.parametrize(
    ("name", "altered"),
    [
        ("resnet18", ["layer4.0", "layer4.1"]),
        ("resnest50d", ["layer4.0", "layer4.1", "layer4.2"]),
        ("res2net50_26w_4s", ["layer4.0", "layer4.1", "layer4.2"]),
        ("mobilenetv2_100", ["blocks.5.1", "blocks.5.2"]),
        ("efficientnet_b0", ["blocks.5.1", "blocks.5.2", "blocks.5.3"]),
        ("regnety_002", [f"s4.b{n}" for n in range(1, 8)]),
        ("densenet121", ["features.denseblock4"] * 16),
        ("repvgg_a0", [f"stages.2.{n}" for n in range(1, 14)]),  # its last stage is one block with a stride, no skip
    ],
)
def test_the_last_stage_of_timm_networks(name, altered):
    assert [skip.block for skip in skips.last_stage(skips.find(*timm_net(name)))] == altered


def test_a_skip_connection_is_described():
    found = skips.find(*torchvision_net("resnet18"))
    assert (found[-2].name, found[-2].add, found[-2].block_class) == ("layer4.0.residual", "residual", "BasicBlock")
    assert [(s.kind, s.stage, s.resolution, s.factor) for s in found[-3:]] == [
        ("identity", 3, "4x4", 1.0), ("projection", 4, "2x2", 1.0), ("identity", 4, "2x2", 1.0)
    ]  # fmt: skip


@pytest.mark.parametrize("size", [16, 32, 64])
def test_stages_stay_apart_when_images_are_so_small_that_they_end_at_one_position(size):
    assert [skip.stage for skip in skips.find(*torchvision_net("resnet18", size))] == [1, 1, 2, 2, 3, 3, 4, 4]


def flat(blocks):
    rows = [torchvision.models.resnet.BasicBlock(8, 8) for _ in range(blocks)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sequential(*rows), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


@pytest.mark.parametrize(("blocks", "last"), [(4, 1), (5, 2), (8, 2), (12, 3)])
def test_a_network_of_one_resolution_ends_with_a_quarter_of_its_blocks(blocks, last):
    found = skips.find(flat(blocks), torch.zeros(1, 3, 8, 8))
    assert len(found) == blocks and len(skips.last_stage(found)) == last and found[0].stage == 1


@pytest.mark.parametrize("name", ["vgg11", "alexnet"])
def test_networks_without_skip_connections_are_not_applicable(name):
    with pytest.raises(ConfigError, match="not applicable"):
        skips.find(*torchvision_net(name, 224))


def test_a_plain_network_is_not_applicable():
    with pytest.raises(ConfigError, match="not applicable"):
        skips.find(plain_cnn(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("factors", [{}, {"layer4.0.residual": 1.0, "layer4.1.residual": 1.0}])
def test_a_surgery_that_alters_nothing_is_refused(factors):
    with pytest.raises(ConfigError, match="nothing would change"):
        skips.scale(torchvision_net("resnet18")[0], factors=factors)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"layer9.0.residual": 0.0}, "expected a block of ResNet, got 'layer9.0.residual'"),
        ({"layer4.0.mlp": 0.0}, "with the skip connections .*mlp, got BasicBlock"),
        ({"conv1.residual": 0.0}, "got Conv2d"),
        ({"layer4.1.residual": 1.5}, "a factor from 0 to 1, got 1.5"),
        ({"layer4.1.residual": float("nan")}, "a factor from 0 to 1, got nan"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(factors, message):
    net = torchvision_net("resnet18")[0]
    with pytest.raises(ConfigError, match=message):
        skips.scale(net, factors={"layer4.0.residual": 0.0} | factors)
    assert not skips.installed(net) and net.layer4[0].downsample is not None


@pytest.mark.parametrize(
    "factors", [["layer4.1.residual"], "x", {"layer4.1.residual": "0"}, {"layer4.1.residual": True}]
)
def test_factors_of_a_damaged_manifest_are_refused(factors):
    with pytest.raises(ConfigError, match="expected numbers by name as factors, got "):
        skips.scale(torchvision_net("resnet18")[0], factors=factors)


def test_a_block_is_scaled_once():
    net = torchvision_net("resnet18")[0]
    skips.scale(net, factors={"layer4.1.residual": 0.5})
    with pytest.raises(ConfigError, match="scaled before"):
        skips.scale(net, factors={"layer4.1.residual": 0.2})


def test_a_removed_projection_leaves_network_and_state_dict():
    net, example = torchvision_net("resnet18")
    before = set(net.state_dict())
    skips.scale(net, factors={"layer4.0.residual": 0.0, "layer3.0.residual": 0.5})
    gone = before - set(net.state_dict())
    assert gone and all(name.startswith("layer4.0.downsample.") for name in gone)
    assert {s.name: s.factor for s in skips.find(net, example) if s.factor < 1} == skips.installed(net)
    with pytest.raises(ConfigError, match=r"expected layer4\.0\.downsample, got none"):
        skips.set_factors(net, {"layer4.0.residual": 1.0})
    skips.set_factors(net, {"layer4.0.residual": 0.0, "layer3.0.residual": 0.1})
    with pytest.raises(ConfigError, match="scale them first"):
        skips.set_factors(net, {"layer4.1.residual": 0.0})


def test_factors_change_the_function_in_between_as_the_formula_says():
    block = torchvision.models.resnet.BasicBlock(4, 4).eval()
    images = torch.rand(2, 4, 8, 8)
    branch = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(images)))))
    skips.scale(nn.ModuleDict({"b": block}), factors={"b.residual": 0.25})
    torch.testing.assert_close(block(images), (branch + 0.25 * images).relu())


def test_a_copy_has_factors_of_its_own():
    net = network("torchvision", "resnet18")
    skips.scale(net, factors={"layer4.1.residual": 0.5})
    twin = copy.deepcopy(net)
    skips.set_factors(twin, {"layer4.1.residual": 0.1})
    assert skips.find(net, torch.zeros(1, 3, 32, 32))[-1].factor == 0.5


@pytest.mark.parametrize(("library", "name"), [("torchvision", "resnet18"), ("timm", "densenet121")])
def test_the_edit_rebuilds_the_network_around_its_weights(library, name):
    images = torch.randn(2, 3, 32, 32)
    net, fresh, stock = (network(library, name) for _ in range(3))
    chosen = [skips.edit(dict.fromkeys((skip.name for skip in skips.last_stage(skips.find(net, images))), 0.0))]
    for each in (net, fresh):
        edits.apply(each, chosen)
    lively(net)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(images), net(images))
    with pytest.raises(RuntimeError, match="edits_seal"):
        stock.load_state_dict(net.state_dict())


def test_surgery_inside_the_frozen_part_is_refused():
    example = torch.zeros(1, 3, 32, 32)
    for cut, inside in (("stage:3", False), ("80%", False), ("90%", True)):  # 7.2 of 8 units: one of two scaled blocks
        net = network("torchvision", "resnet18")
        skips.scale(net, factors={"layer4.0.residual": 0.0, "layer4.1.residual": 0.0})
        if inside:
            with pytest.raises(ConfigError, match=r"got layer4\.0 inside"):
                freeze(net, cut, example)
        else:
            freeze(net, cut, example)
        assert net.conv1.weight.requires_grad == inside


def test_stochastic_depth_is_left_out_where_the_shortcut_is_weak():
    net = timm.create_model("efficientnet_b0", num_classes=10, drop_path_rate=0.9).train()
    name, inputs = "blocks.5.3.residual", torch.randn(64, 192, 2, 2)
    skips.scale(net, factors={name: 0.4})
    weak = (net.blocks[5][3](inputs) == 0.4 * inputs).flatten(1).all(dim=1)
    skips.set_factors(net, {name: 0.6})
    strong = (net.blocks[5][3](inputs) == 0.6 * inputs).flatten(1).all(dim=1)
    assert not weak.any() and strong.any()


class IRUnit(nn.Module):
    """The unit of the IR-50 and IR-152 of the face papers: a class of the user's own."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        norm, conv = nn.BatchNorm2d(outputs), nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.shortcut_layer = nn.MaxPool2d(1, stride) if inputs == outputs else nn.Sequential(conv, norm)
        rows = (nn.Conv2d(inputs, outputs, 3, 1, 1), nn.PReLU(outputs), nn.Conv2d(outputs, outputs, 3, stride, 1))
        self.res_layer = nn.Sequential(nn.BatchNorm2d(inputs), *rows, nn.BatchNorm2d(outputs))

    def forward(self, images):
        shortcut = self.shortcut_layer(images)
        return self.res_layer(images) + shortcut


def test_units_of_face_networks_are_found_by_tracing():
    torch.manual_seed(0)
    rows = [
        IRUnit(*sizes) for sizes in ((4, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 16, 1))
    ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    net = lively(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(*rows), *head))
    images = torch.randn(2, 3, 16, 16)
    chosen = skips.last_stage(skips.find(net, images))
    assert [(skip.block, skip.kind) for skip in chosen] == [
        ("1.4", "projection"), ("1.5", "identity"), ("1.6", "identity")
    ]  # fmt: skip
    expected = net[:1](images)
    for place, unit in enumerate(rows):
        expected = unit.res_layer(expected) + (unit.shortcut_layer(expected) if place < 4 else 0)
    skips.scale(net, factors=dict.fromkeys((skip.name for skip in chosen), 0.0))
    torch.testing.assert_close(net(images), net[2:](expected))
