import pytest
import timm
import torch
import torchvision
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.nn.anatomy import dissect, units
from mi_audit.nn.classifier import Classifier


def on_meta(build, size=64, **options):
    """A network without memory, and an image to trace it with."""
    with torch.device("meta"):
        net = build(**options).train()
    return net, torch.zeros(1, 3, size, size, device="meta")


def torchvision_net(name, size=64, **options):
    return on_meta(lambda: torchvision.models.get_model(name, weights=None, **options), size)


def timm_net(name, size=224):
    return on_meta(lambda: timm.create_model(name), size)


def plain_cnn(width=4, depth=5):
    rows = [
        part
        for place in range(depth)
        for part in (nn.Conv2d(width if place else 3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    ]
    return nn.Sequential(*rows, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("resnet18", 64, 8),
        ("resnet34", 64, 16),
        ("resnet50", 64, 16),
        ("resnet101", 64, 33),
        ("resnet152", 64, 50),
        ("resnext50_32x4d", 64, 16),
        ("vgg16", 224, 13),
        ("vgg16_bn", 224, 13),
        ("densenet121", 64, 58),
        ("densenet201", 64, 98),
        ("mobilenet_v2", 64, 17),
        ("efficientnet_b0", 64, 16),
        ("convnext_tiny", 64, 18),
        ("vit_b_16", 224, 12),
        ("swin_t", 64, 12),
        ("squeezenet1_1", 64, 8),
    ],
)
def test_counts_the_units_of_torchvision_networks(name, size, count):
    assert len(units(*torchvision_net(name, size))) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet50", 16),
        ("resnext50_32x4d", 16),
        ("vgg16_bn", 13),
        ("densenet121", 58),
        ("mobilenetv2_100", 17),
        ("efficientnet_b0", 16),
        ("convnext_tiny", 18),
        ("vit_base_patch16_224", 12),
        ("swin_tiny_patch4_window7_224", 12),
        ("maxvit_tiny_rw_224", 11),
    ],
)
def test_counts_the_units_of_timm_networks(name, count):
    assert len(units(*timm_net(name))) == count


def test_the_stem_belongs_to_the_first_unit_and_the_head_to_none():
    found = units(*torchvision_net("resnet18"))
    assert {"conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight"} <= set(found[0].parameters)
    assert [unit.name for unit in found[:3]] == ["layer1.0", "layer1.1", "layer2.0"]
    assert not any(name.startswith("fc") for unit in found for name in unit.parameters)


def test_loose_parameters_of_the_network_belong_to_the_first_unit():
    found = units(*torchvision_net("vit_b_16", 224))
    assert {"class_token", "encoder.pos_embedding", "conv_proj.weight"} <= set(found[0].parameters)


def test_the_weights_inside_attention_belong_to_their_block():
    block = units(*torchvision_net("vit_b_16", 224))[3]
    assert f"{block.name}.self_attention.out_proj.weight" in block.parameters


def test_a_transition_belongs_to_the_following_unit():
    found = units(*torchvision_net("densenet121"))
    assert "features.transition1.conv.weight" in found[6].parameters
    assert found[6].name == "features.denseblock2.denselayer1"


def test_the_final_norm_belongs_to_no_unit():
    for name, norm in (("densenet121", "features.norm5"), ("swin_t", "norm"), ("convnext_tiny", "classifier.0")):
        assert not any(p.startswith(norm) for unit in units(*torchvision_net(name)) for p in unit.parameters)


def test_a_hidden_linear_layer_after_the_last_convolution_belongs_to_no_unit():
    found = units(*torchvision_net("vgg16_bn", 224))
    assert found[-1].parameters == tuple(f"features.{i}.{n}" for i in (40, 41) for n in ("weight", "bias"))


def test_a_plain_network_is_divided_into_convolutions_with_their_norm():
    found = units(plain_cnn(), torch.zeros(1, 3, 8, 8))
    assert [unit.name for unit in found] == ["0", "3", "6", "9", "12"]
    assert found[1].parameters == ("3.weight", "3.bias", "4.weight", "4.bias")


def test_a_norm_of_flat_features_before_the_head_is_no_part_of_the_last_convolution():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 4))
    assert units(net, torch.zeros(1, 3, 8, 8))[0].parameters == ("0.weight", "0.bias")


def test_a_perceptron_is_divided_into_linear_layers():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    assert [unit.name for unit in units(net, torch.zeros(1, 3, 8, 8))] == ["1", "3"]


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(4, 4)

    def forward(self, images):
        return images * self.scale(images.mean(dim=(2, 3)))[:, :, None, None].sigmoid()


def test_a_lone_block_among_convolutions_is_no_unit():
    net = plain_cnn()
    net.insert(8, Gate())
    found = units(net, torch.zeros(1, 3, 8, 8))
    assert [unit.name for unit in found] == ["0", "3", "6", "10", "13"]
    assert "8.scale.weight" in found[3].parameters


class Backwards(nn.Module):
    """Registers its layers against the order in which they run."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.second = nn.Conv2d(4, 4, 3)
        self.first = nn.Conv2d(3, 4, 3)
        self.never = nn.Conv2d(4, 4, 3)

    def forward(self, images):
        return self.fc(self.second(self.first(images)).mean(dim=(2, 3)))


def test_units_come_in_the_order_in_which_they_run():
    assert [unit.name for unit in units(Backwards(), torch.zeros(1, 3, 8, 8))] == ["first", "second"]


def test_a_wrapped_network_has_the_units_of_the_network():
    net = Classifier(plain_cnn(), size=8, channels=3, mean=(0.5,), std=(0.5,))
    assert [unit.name for unit in units(net, torch.zeros(1, 3, 8, 8))] == ["net.0", "net.3", "net.6", "net.9", "net.12"]
    backbone = torchvision.models.resnet18(weights=None)
    backbone.fc = nn.Identity()
    assert len(units(nn.Sequential(backbone, nn.Linear(512, 4)), torch.zeros(1, 3, 32, 32))) == 8


def test_stages_follow_the_containers_or_else_the_resolution():
    resnet = units(*torchvision_net("resnet18"))
    assert [unit.stage for unit in resnet[::2]] == ["layer1", "layer2", "layer3", "layer4"]
    vgg = units(*torchvision_net("vgg16_bn", 224))
    assert [unit.stage for unit in vgg].count("56x56") == 3


def test_tracing_leaves_hooks_modes_and_statistics_alone():
    net = plain_cnn().train()
    net[4].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    units(net, torch.rand(2, 3, 8, 8))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert net.training and net[1].training and not net[4].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_network_without_weights_is_refused():
    with pytest.raises(ConfigError, match="expected a network with a linear layer"):
        dissect(nn.Flatten(), torch.zeros(1, 3, 8, 8))
