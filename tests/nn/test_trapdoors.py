import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mi_audit.nn.classifier import Classifier
from mi_audit.nn.trapdoors import Trapdoors, one_logit
from tests.nn.test_anatomy import plain_cnn
from tests.toy import classifier

EXAMPLE = torch.rand(2, 3, 8, 8)


def trapdoors(network=None, classes=4, lr=0.1):
    torch.manual_seed(0)
    return Trapdoors(network or plain_cnn(), classes, EXAMPLE, lr=lr, momentum=0.9, weight_decay=0.0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_discriminator_starts_as_the_network_with_one_output_and_trains_as_a_whole():
    net = plain_cnn().train()
    for parameter in net[:9].parameters():
        parameter.requires_grad_(False)
    critic = one_logit(net, EXAMPLE)
    assert critic(EXAMPLE).shape == (2, 1)
    assert all(parameter.requires_grad for parameter in critic.parameters())
    same = {name for name, value in net.state_dict().items() if torch.equal(value, critic.state_dict()[name])}
    assert set(net.state_dict()) - same == {"17.weight", "17.bias"} | {  # it has learnt statistics of its own since
        name for name in net.state_dict() if "running" in name or "tracked" in name
    }
    assert not net[0].weight.requires_grad and net[17].out_features == 4
    assert critic[0].weight is not net[0].weight


def test_the_order_of_the_classes_is_none_of_its_business():
    net = Classifier(plain_cnn(), size=8, channels=3, mean=(0.5,), std=(0.5,), order=(3, 1, 0, 2))
    assert one_logit(net, EXAMPLE)(EXAMPLE).shape == (2, 1)
    assert net.order == (3, 1, 0, 2)


def test_a_head_that_is_a_convolution_works_too():
    net = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    assert one_logit(net, EXAMPLE)(EXAMPLE).shape == (2, 1)


def test_triggers_begin_as_noise_in_the_range_of_images():
    triggers = trapdoors(classes=7).triggers
    assert triggers.shape == (7, 3, 8, 8) and triggers.min() >= 0 and triggers.max() <= 1
    assert triggers.mean().item() == pytest.approx(0.5, abs=0.05)
    assert triggers.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.03)


@given(counts=st.lists(st.integers(1, 11), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_deals_every_class_before_any_again(counts, seed):
    doors, random = trapdoors(classifier()), rng(seed)
    dealt = torch.cat([doors.deal(count, random) for count in counts])
    assert len(dealt) == sum(counts)
    for start in range(0, len(dealt) - 3, 4):
        assert dealt[start : start + 4].sort().values.tolist() == [0, 1, 2, 3]


def test_deals_in_an_order_of_chance():
    orders = torch.stack([trapdoors(classifier()).deal(4, rng(seed)) for seed in range(200)])
    first = orders[:, 0].bincount(minlength=4).float()
    assert ((first - 50).square() / 50).sum() < 16.3  # chi-square with 3 degrees of freedom, 0.1 %


def test_surprise_is_binary_cross_entropy():
    doors = trapdoors(classifier())
    head = doors.discriminator[1]
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, 2.0)
    assert doors.surprise(EXAMPLE, real=True).item() == pytest.approx(math.log1p(math.exp(-2)), rel=1e-5)
    assert doors.surprise(EXAMPLE, real=False).item() == pytest.approx(math.log1p(math.exp(2)), rel=1e-5)


def test_a_step_of_the_discriminator_is_gradient_descent_on_both_kinds():
    doors = trapdoors(classifier(), lr=0.5)
    head = doors.discriminator[1]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    real, trapped = torch.rand(2, 5, 3, 8, 8)
    assert doors.judge(real, trapped).item() == pytest.approx(math.log(2), rel=1e-5)
    # at logit 0 the slope of -log sigmoid(s) is -1/2 and that of -log(1 - sigmoid(s)) is +1/2; half of each counts
    expected = 0.5 * 0.25 * (real.mean(dim=0) - trapped.mean(dim=0)).flatten()
    torch.testing.assert_close(head.weight.flatten(), expected)
    assert all(parameter.grad is None for parameter in doors.parameters())


def test_the_discriminator_learns_in_training_mode():
    doors = trapdoors()
    doors.eval()
    doors.judge(EXAMPLE, EXAMPLE)
    assert doors.discriminator[1].num_batches_tracked == 2


def test_triggers_move_against_the_sign_and_stay_images():
    doors = trapdoors(classifier())
    doors.triggers.fill_(0.5)
    doors.triggers[2].fill_(0.995)
    before, slope = doors.triggers.clone(), torch.zeros(2, 3, 8, 8)
    slope[0, 0], slope[0, 1], slope[1] = 7.0, -1e-6, -3.0
    doors.move(torch.tensor([1, 2]), slope, step=0.01)
    torch.testing.assert_close(doors.triggers[1, :, 0, 0], torch.tensor([0.49, 0.51, 0.5]))
    assert torch.equal(doors.triggers[2], torch.ones(3, 8, 8))  # not 1.005
    assert torch.equal(doors.triggers[[0, 3]], before[[0, 3]])
