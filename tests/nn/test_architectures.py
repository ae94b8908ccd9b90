import pytest
import torch

from mi_audit.core.errors import ConfigError
from mi_audit.nn.architectures import NETWORKS, built_in
from mi_audit.nn.classifier import Classifier


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_gives_one_row_of_logits(name, channels):
    size = 32 if name.startswith("cnn") else 64
    net = Classifier(built_in(name, 5, channels), size=size, channels=channels, mean=(0.5,), std=(0.5,))
    assert net(torch.zeros(2, channels, size, size)).shape == (2, 5)
    assert isinstance(net.head, torch.nn.Linear)


@pytest.mark.parametrize("name", ["resnet18-small", "densenet121-small"])
def test_small_networks_keep_four_by_four_positions_of_64_pixels(name):
    net = built_in(name, 5, 3).eval()
    layer = net.layer4 if name.startswith("resnet") else net.features
    seen = []
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape[-2:])))
    net(torch.zeros(1, 3, 64, 64))
    assert seen == [(4, 4)]


def test_the_judge_of_digits_is_of_another_family_than_their_target():
    kinds = [{type(module) for module in built_in(name, 5, 1).modules()} for name in ("cnn", "cnn-wide")]
    assert torch.nn.BatchNorm2d in kinds[0] and torch.nn.BatchNorm2d not in kinds[1]


def test_the_bias_of_the_feature_norm_of_vgg_is_fixed_at_zero():
    norm = built_in("vgg16-bn-small", 5, 3).pool[2]
    assert not norm.bias.requires_grad and not norm.bias.any()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"expected one of cnn, .* got 'lenet'"):
        built_in("lenet", 5, 1)
