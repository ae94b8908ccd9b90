import pytest
import torch
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.freezing import freeze
from mi_audit.nn.stages import hidden_layers
from tests.nn.test_anatomy import plain_cnn, timm_net, torchvision_net

EXAMPLE = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet18", 64, ["layer1", "layer2", "layer3", "layer4"]),
        ("densenet121", 64, [f"features.denseblock{number}" for number in (1, 2, 3, 4)]),
        ("swin_t", 64, ["features.1", "features.3", "features.5", "features.7"]),
        # the five pools, and the last hidden linear layer after its activation
        ("vgg16_bn", 64, [*(f"features.{number}" for number in (6, 13, 23, 33, 43)), "classifier.4"]),
        # one stage of twelve blocks
        ("vit_b_16", 224, [f"encoder.layers.encoder_layer_{number}" for number in (2, 5, 8, 11)]),
    ],
)
def test_stages_of_torchvision_networks(name, size, expected):
    assert list(hidden_layers(*torchvision_net(name, size))) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", ["layer1", "layer2", "layer3", "layer4"]),
        ("vit_tiny_patch16_224", ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]),
        ("inception_v3", ["Conv2d_3b_1x1", "Mixed_5d", "Mixed_6d", "Mixed_7c"]),  # every block is a stage: four
    ],
)
def test_stages_of_timm_networks(name, expected):
    assert list(hidden_layers(*timm_net(name))) == expected


def test_frozen_stages_are_left_out():
    net, example = torchvision_net("resnet18")
    freeze(net, "stage:2", example)
    assert hidden_layers(net, example) == ("layer3", "layer4")
    assert hidden_layers(net, example, ("layer1", "layer4")) == ("layer4",)


def test_the_end_of_a_plain_network_is_its_pooled_feature_without_dropout():
    net = plain_cnn(depth=1)
    net.insert(5, nn.Dropout())
    assert hidden_layers(net, EXAMPLE) == ("4",)  # the flattened pool; 5 is the dropout


def test_a_bottleneck_before_the_head_is_a_layer_after_its_activation():
    net, example = torchvision_net("resnet18")
    net.fc = nn.Sequential(nn.Linear(512, 20), nn.Tanh(), nn.Linear(20, 100)).to("meta")
    assert hidden_layers(net, example)[-1] == "fc.1"
    freeze(net, "linear-probe", example)
    net.fc[0].requires_grad_(True)
    assert hidden_layers(net, example) == ("fc.1",)


class Reusing(nn.Module):
    """Runs one activation and one pool after each of its two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.pool, self.fc = nn.ReLU(), nn.MaxPool2d(2), nn.Linear(16, 4)

    def forward(self, images):
        return self.fc(self.pool(self.relu(self.second(self.pool(self.relu(self.first(images)))))).flatten(1))


def test_what_runs_twice_is_no_layer():
    assert hidden_layers(Reusing(), EXAMPLE) == ("first", "second")
    with pytest.raises(ConfigError, match="expected one module that runs once and gives a tensor, got 0 called 'pool'"):
        hidden_layers(Reusing(), EXAMPLE, ("pool",))


def test_wanted_layers_come_in_the_order_in_which_they_run():
    net = Classifier(plain_cnn(), size=8, channels=3, mean=(0.5,), std=(0.5,))
    assert hidden_layers(net, EXAMPLE, ("14", "5")) == ("net.5", "net.14")


def test_a_network_of_which_only_the_head_learns_is_refused():
    net, example = torchvision_net("resnet18")
    freeze(net, "linear-probe", example)
    with pytest.raises(ConfigError, match=r"expected a hidden layer that learns, got none among layer1, .*freeze less"):
        hidden_layers(net, example)


def test_tracing_leaves_hooks_and_modes_alone():
    net = plain_cnn().train()
    net[4].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    hidden_layers(net, torch.rand(2, 3, 8, 8))
    assert not any(part._forward_hooks for part in net.modules())
    assert net.training and net[1].training and not net[4].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
