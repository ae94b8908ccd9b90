import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mi_audit.nn.shortcuts import mislead, slope
from tests.nn.test_anatomy import plain_cnn
from tests.toy import classifier

TWO_PIXELS = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # class 0 likes a bright first pixel, class 1 the second


def two_pixels():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    net[1].weight.data.copy_(TWO_PIXELS)
    return net


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_slope_is_the_gradient_and_reaches_no_parameter():
    net = two_pixels().requires_grad_(False)  # frozen, and still the way to the image
    net[1].bias = nn.Parameter(torch.zeros(2))
    net[1].bias.grad = torch.ones(2)
    with torch.no_grad():
        found = slope(lambda x: net(x)[:, 0].sum(), torch.rand(1, 1, 1, 2))
    assert torch.equal(found.flatten(), TWO_PIXELS[0]) and not found.requires_grad
    assert torch.equal(net[1].bias.grad, torch.ones(2))


def test_descends_to_the_edge_of_the_box_towards_the_label():
    images = torch.tensor([[[[0.5, 0.5]]], [[[0.1, 0.95]]]])
    pushed = mislead(
        two_pixels(), images, torch.tensor([0, 1]), torch.full_like(images, 0.5), reach=0.25, step=0.1, steps=3
    )
    # three steps of 0.1 leave the box of 0.25: (+, -) towards class 0; (-, +) towards class 1, stopped by 0 and 1
    torch.testing.assert_close(pushed.flatten(1), torch.tensor([[0.75, 0.25], [0.0, 1.0]]))
    two = mislead(
        two_pixels(), images, torch.tensor([0, 1]), torch.full_like(images, 0.5), reach=0.25, step=0.1, steps=2
    )
    torch.testing.assert_close(two[0].flatten(), torch.tensor([0.7, 0.3]))


def test_starts_anywhere_in_the_box():
    net = two_pixels()
    net[1].weight.data.zero_()  # no slope: the start is the answer
    start = torch.tensor([[[[0.0, 0.75]]]])
    pushed = mislead(net, torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]), start, reach=0.2, step=0.1, steps=1)
    torch.testing.assert_close(pushed.flatten(), torch.tensor([0.3, 0.6]))


@given(reach=st.floats(1e-4, 0.5), step=st.floats(1e-5, 0.5), steps=st.integers(1, 4), seed=st.integers(0, 99))
def test_never_leaves_the_box_or_the_range(reach, step, steps, seed):
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 8, 8, generator=rng).round(decimals=1)  # some pixels are black or white
    start, labels = torch.rand(images.shape, generator=rng), torch.tensor([0, 1, 2])
    pushed = mislead(classifier(), images, labels, start, reach=reach, step=step, steps=steps)
    assert (pushed - images).abs().max() <= reach + 1e-6
    assert pushed.min() >= 0 and pushed.max() <= 1


def test_the_network_is_left_alone():
    net = plain_cnn().train()
    before, images = state(net), torch.rand(4, 3, 8, 8)
    pushed = mislead(net, images, torch.arange(4), torch.rand_like(images), reach=0.1, step=0.05, steps=2)
    assert same(state(net), before) and net.training and not pushed.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
