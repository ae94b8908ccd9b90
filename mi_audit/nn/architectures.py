"""The built-in classifiers for small images: targets and evaluators that train on two cores."""

from collections.abc import Callable

import torchvision
from torch import nn

from mi_audit.core.errors import ConfigError


def built_in(name: str, num_classes: int, channels: int) -> nn.Module:
    """A fresh network called `name`, weights drawn from the global generator.

    Raises:
        ConfigError: There is no such network.
    """
    if name not in NETWORKS:
        raise ConfigError(f"expected one of {', '.join(NETWORKS)}, got {name!r}; correct --arch built-in:NAME")
    return NETWORKS[name](num_classes, channels)


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _cnn(num_classes: int, channels: int) -> nn.Module:
    """Six convolution-BatchNorm-ReLU units, three of them halving the image, then the mean over positions."""
    widths = ((channels, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2))
    units = [_unit(inputs, outputs, stride) for inputs, outputs, stride in widths]
    return nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))


def _wide_unit(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 5, padding=2)
    return nn.Sequential(convolution, nn.GroupNorm(8, outputs), nn.SiLU(inplace=True), nn.AvgPool2d(2))


def _cnn_wide(num_classes: int, channels: int) -> nn.Module:
    """Another family than `cnn`, to judge it: 5x5 kernels, GroupNorm, SiLU, average pooling, a hidden linear layer."""
    units = [_wide_unit(inputs, outputs) for inputs, outputs in ((channels, 32), (32, 64), (64, 128))]
    hidden = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, 128), nn.SiLU(inplace=True))
    return nn.Sequential(*units, *hidden, nn.Linear(128, num_classes))


def _resnet_small(depth: int) -> Callable[[int, int], nn.Module]:
    """A ResNet without the pooling of its stem, so that 64-pixel images keep 4x4 positions; keys as in torchvision."""

    def build(num_classes: int, channels: int) -> nn.Module:
        net = torchvision.models.get_model(f"resnet{depth}", weights=None, num_classes=num_classes)
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
        return net

    return build


def _densenet_small(num_classes: int, channels: int) -> nn.Module:
    """DenseNet-121 without the pooling of its stem; keys as in torchvision."""
    net = torchvision.models.get_model("densenet121", weights=None, num_classes=num_classes)
    net.features.conv0 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(net.features.conv0.weight)
    net.features.pool0 = nn.Identity()
    return net


def _vgg_small(num_classes: int, channels: int) -> nn.Module:
    """VGG-16 with BatchNorm and the head of the 64-pixel papers: 512x2x2, BatchNorm with its bias kept at 0, linear."""
    layers: list[nn.Module] = []
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    norm = nn.BatchNorm1d(2048)
    norm.bias.requires_grad_(False)
    net = nn.Sequential()
    net.add_module("features", nn.Sequential(*layers))  # the names of torchvision, so that its weights fit
    net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), norm))
    net.add_module("classifier", nn.Linear(2048, num_classes))
    return net


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "cnn": _cnn,
    "cnn-wide": _cnn_wide,
    "resnet18-small": _resnet_small(18),
    "resnet34-small": _resnet_small(34),
    "densenet121-small": _densenet_small,
    "vgg16-bn-small": _vgg_small,
}
