import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.nn import packing
from mi_audit.nn.packing import SwiftConv2d, SwiftConvTranspose2d, SwiftLinear, pack
from mi_audit.nn.precision import has_native_bf16

BF16 = pytest.mark.skipif(not has_native_bf16("cpu"), reason="no bfloat16 in hardware")
PRECISIONS = [pytest.param(False, id="32"), pytest.param(True, id="bf16", marks=BF16)]


def network():
    torch.manual_seed(0)
    layers = (
        nn.ConvTranspose2d(6, 40, 4),
        nn.ReLU(),
        nn.ConvTranspose2d(40, 48, 5, stride=2, padding=2, output_padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(48, 40, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(40, 40, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(40, 72, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(72, 33, 1),
        nn.Flatten(),
        nn.Linear(33, 5),
    )
    return nn.Sequential(*layers).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def packed(net):
    net = copy.deepcopy(net)
    pack(net)
    return net


def passed(net, rows, mixed):
    start = torch.randn(rows, 6, 1, 1, generator=torch.Generator().manual_seed(rows)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        made = net(start)
    return made.detach(), torch.autograd.grad(made.float().square().sum(), start)[0]


def same(ours, theirs):
    return all(map(torch.equal, ours, theirs))


def copies(net):
    return [module.packing for module in net.modules() if hasattr(module, "packing")]


@pytest.mark.parametrize("mixed", PRECISIONS)
def test_the_same_bits_whatever_the_number_of_rows(mixed):
    net = network()
    swift = packed(net)
    assert [type(swift[place]) for place in (0, 4, 10)] == [SwiftConvTranspose2d, SwiftConv2d, SwiftLinear]
    for rows in (1, 3, 9, 4):
        assert same(passed(swift, rows, mixed), passed(net, rows, mixed))
    assert swift[2].packing._laid.keys() == {False, True} and not swift[6].packing._laid


@BF16
def test_one_precision_after_the_other():
    net = network()
    swift = packed(net)
    for mixed in (True, False, True):
        assert same(passed(swift, 3, mixed), passed(net, 3, mixed))
        kept = torch.bfloat16 if mixed else torch.float32
        assert all(laid.dtype == kept for layer in copies(swift) for _, laid in layer._laid.values())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(swift.parameters(), net.parameters(), strict=True))


@BF16
def test_weights_are_cast_once(monkeypatch):
    swift, seen = packed(network()), []
    plain = F.linear

    def linear(features, weight, bias):
        seen.append(weight)
        return plain(features, weight, bias)

    monkeypatch.setattr(packing.F, "linear", linear)
    for _ in range(2):
        passed(swift, 3, True)
    assert seen[0] is seen[1] and seen[0].dtype == torch.bfloat16


@pytest.mark.parametrize("mixed", PRECISIONS)
def test_large_maps_and_passes_without_a_gradient_keep_nothing_for_the_kernels(mixed, monkeypatch):
    net = network()
    swift = packed(net)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        start = torch.randn(3, 6, 1, 1)
        assert torch.equal(swift(start), net(start))
    monkeypatch.setattr(packing, "MOST", 2)
    assert same(passed(swift, 3, mixed), passed(net, 3, mixed))
    assert not any(layer._laid for layer in copies(swift))


def test_gradients_of_gradients():
    found = []
    for net in (network(), packed(network())):
        start = torch.randn(3, 6, 1, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (slope,) = torch.autograd.grad(net(start).pow(3).sum(), start, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), start)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4 * found[0].abs().max().item())


@pytest.mark.parametrize("mixed", PRECISIONS)
def test_changed_weights_are_laid_out_anew(mixed):
    net = network()
    swift = packed(net)
    passed(swift, 3, mixed)
    for one in (net, swift):
        one[4].weight.mul_(2)
        one[10].weight.mul_(-1)
    assert same(passed(swift, 3, mixed), passed(net, 3, mixed))


def test_copies_start_without_what_was_kept():
    swift = packed(network())
    expected = passed(swift, 3, False)
    for twin in (copy.deepcopy(swift), pickle.loads(pickle.dumps(swift))):
        assert not any(layer._laid for layer in copies(twin))
        assert same(passed(twin, 3, False), expected)


def test_what_stays_as_it_is():
    hooked, trained, mirrored = nn.Linear(2, 2), nn.Linear(2, 2), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
    hooked.register_forward_hook(lambda *_: None)
    net = nn.Sequential(hooked, mirrored, nn.Linear(2, 2).double()).requires_grad_(False).append(trained)
    pack(net)
    assert not copies(net)
