import pytest
import timm
import torch
from torch import nn

from mi_audit.nn.folding import NORMS, close, fold


def trained(net, *shape):
    """`net` whose normalisations have learned something, frozen."""
    torch.manual_seed(0)
    for norm in (module for module in net.modules() if type(module) in NORMS):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3.0)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)
    return net.eval().requires_grad_(False), torch.randn(2, *shape)


def left(net):
    return sum(type(module) in NORMS for module in net.modules())


def test_by_hand():
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0)).eval()
    with torch.no_grad():
        net[0].weight.fill_(3.0), net[0].bias.fill_(1.0)
        net[1].running_mean.fill_(5.0), net[1].running_var.fill_(4.0)
        net[1].weight.fill_(8.0), net[1].bias.fill_(7.0)
    net.requires_grad_(False)
    assert fold(net, torch.ones(2, 1)) == 1
    # 8 (3 x + 1 - 5) / 2 + 7 = 12 x - 9
    assert net[0].weight.item() == 12 and net[0].bias.item() == -9
    assert not net[0].weight.requires_grad and isinstance(net[1], nn.Identity)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)], (3, 6, 6)),
        ([nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(6, affine=False)], (4, 6, 6)),
        ([nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4)], (3, 6, 6)),
        ([nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)], (3, 6)),
        ([nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(inplace=True)], (3,)),
        ([nn.Conv2d(3, 4, 3), timm.layers.BatchNormAct2d(4)], (3, 6, 6)),
    ],
)
def test_layer_and_norm_in_one(layers, shape):
    net, images = trained(nn.Sequential(*layers), *shape)
    expected = net(images)
    assert fold(net, images) == 1 and left(net) == 0
    torch.testing.assert_close(net(images), expected, atol=1e-5, rtol=1e-5)


class ReadTwice(nn.Module):
    """The skip connection reads what the convolution gives, before the norm."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.layer(x)
        return self.norm(x) + x


class CalledTwice(ReadTwice):
    def forward(self, x):
        return self.norm(self.layer(self.layer(x)))


class NormedTwice(ReadTwice):
    def forward(self, x):
        return self.norm(self.norm(self.layer(x)))


class Between(ReadTwice):
    def forward(self, x):
        return self.norm(self.layer(x).relu_())  # writes over what the layer gave, so that the tensor is the same


class Returned(ReadTwice):
    def forward(self, x):
        x = self.layer(x)
        return self.norm(x), x


@pytest.mark.parametrize("net", [ReadTwice, CalledTwice, NormedTwice, Between, Returned])
def test_what_is_read_or_called_twice_stays(net):
    net, images = trained(net(), 3, 4, 4)
    before = net.layer.weight.clone()
    assert fold(net, images) == 0 and left(net) == 1
    assert torch.equal(net.layer.weight, before)


def test_layers_that_are_more_than_their_weights_stay():
    standardised, images = trained(nn.Sequential(timm.layers.StdConv2d(3, 4, 3), nn.BatchNorm2d(4)), 3, 6, 6)
    expected = standardised(images)
    assert fold(standardised, images) == 0 and torch.equal(standardised(images), expected)

    computed = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    computed, images = trained(computed, 3, 6, 6)
    assert fold(computed, images) == 0

    hooked, images = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 3, 6, 6)
    hooked[0].register_forward_hook(lambda _module, _inputs, output: output * 2)
    assert fold(hooked, images) == 0


def test_transposed_groups_and_training_norms_stay():
    grouped, images = trained(nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)), 4, 5, 5)
    assert fold(grouped, images) == 0
    learning, images = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 3, 6, 6)
    learning[1].train()
    assert fold(learning, images) == 0


def test_a_norm_with_two_names_goes_from_both():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net.also = nn.ModuleList([net[1]])
    net.forward = lambda x: net[1](net[0](x))
    net, images = trained(net, 3, 6, 6)
    assert fold(net, images) == 1 and left(net) == 0


def test_no_hook_is_left_behind():
    net, images = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 3, 6, 6)
    fold(net, images)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_close_is_relative_to_the_largest_value_and_refuses_nan():
    big = torch.tensor([1000.0, 0.0])
    assert close(big + 0.09, big) and not close(big + 0.2, big)
    assert not close(big * float("nan"), big) and not close(big[:1], big)
