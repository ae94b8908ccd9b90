import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.nn import skips
from mi_audit.nn.skips_joining import scaling
from mi_audit.nn.skips_ratio import ratios
from tests.nn.test_skips import network


def caught(net, name, images):
    """What a module took and gave."""
    found = []
    hook = net.get_submodule(name).register_forward_hook(lambda _, taken, gave: found.extend((*taken, gave)))
    with torch.no_grad():
        net(images)
    hook.remove()
    return found


def test_the_ratio_of_a_resnet_by_hooks():
    net, images = network("torchvision", "resnet18"), torch.randn(4, 3, 64, 64)
    skips.scale(net, factors={"layer4.0.residual": 0.5, "layer4.1.residual": 0.2, "layer3.1.residual": 0.0})
    found = ratios(net.train(), images)
    assert found.keys() == {"layer4.0.residual", "layer4.1.residual", "layer3.1.residual"}
    net.eval()
    (_, projected), (_, branch) = caught(net, "layer4.0.downsample", images), caught(net, "layer4.0.bn2", images)
    assert found["layer4.0.residual"] == pytest.approx(float(0.5 * projected.norm() / branch.norm()), rel=1e-5)
    (inputs, _), (_, branch) = caught(net, "layer4.1", images), caught(net, "layer4.1.bn2", images)
    assert found["layer4.1.residual"] == pytest.approx(float(0.2 * inputs.norm() / branch.norm()), rel=1e-5)
    assert found["layer3.1.residual"] == 0


def test_measuring_leaves_nothing_behind():
    net, images = network("torchvision", "resnet18"), torch.randn(2, 3, 64, 64)
    assert ratios(net, images) == {}
    skips.scale(net, factors={"layer4.1.residual": 0.2})
    net.train()
    ratios(net, images)
    assert not scaling(net.layer4[1]).ratios and all(module.training for module in net.modules())


class Strange(nn.Module):
    """A block that no family knows."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.two(F.relu(self.one(x))))


def test_the_ratio_of_a_traced_block():
    torch.manual_seed(0)
    net, images = (
        nn.Sequential(nn.Conv2d(3, 4, 1), Strange(), nn.Flatten(), nn.Linear(4 * 64, 5)),
        torch.rand(2, 3, 8, 8),
    )
    (skip,) = skips.find(net, images)
    skips.scale(net, factors={skip.name: 0.3})
    (inputs, _), (_, branch) = caught(net, "1", images), caught(net, "1.two", images)
    assert ratios(net, images) == {skip.name: pytest.approx(float(0.3 * inputs.norm() / branch.norm()), rel=1e-5)}


def test_the_ratio_of_a_dense_layer_is_that_of_the_channels_it_carries_over():
    net, images = network("torchvision", "densenet121"), torch.randn(2, 3, 64, 64)
    skips.scale(net, factors={"features.denseblock4.denselayer1": 0.25})
    (inputs, _), (_, newest) = (
        caught(net, "features.denseblock4", images),
        caught(net, "features.denseblock4.denselayer1", images),
    )
    found = ratios(net, images)["features.denseblock4.denselayer1"]
    assert found == pytest.approx(float(inputs[:, :128].norm() / newest.norm()), rel=1e-5)
