import math

import pytest
import torch

from mi_audit.core.target import Normalisation
from mi_audit.nn.pixel_space import Roll, coarse, statistics_distance, total_variation
from tests.toy import streams


def test_a_roll_moves_every_image_by_whole_pixels_and_loses_none():
    images = torch.rand(300, 1, 8, 8)
    rolled = Roll(0.25, flip=0.0)(images, streams(300), 3)
    shifts = {(dy, dx): images.roll((dy, dx), (2, 3)) for dy in range(-2, 3) for dx in range(-2, 3)}
    found = [[shift for shift, moved in shifts.items() if torch.equal(moved[i], rolled[i])] for i in range(300)]
    assert all(len(one) == 1 for one in found)
    assert {one[0] for one in found} == set(shifts)  # every one of the 25 shifts of up to two pixels
    mirrored = Roll(0.0, flip=1.0)(images, streams(300), 3)
    assert torch.equal(mirrored, images.flip(3))
    some = (Roll(0.0)(images, streams(300), 3) != images).flatten(1).any(dim=1).float().mean()
    assert some.item() == pytest.approx(0.5, abs=0.13)


def test_a_roll_is_differentiable_and_depends_on_stream_and_step():
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    weights = torch.rand(2, 1, 8, 8)
    (slope,) = torch.autograd.grad((Roll(0.25)(images, streams(2), 0) * weights).sum(), images)
    assert torch.equal(slope.flatten(1).sort(dim=1).values, weights.flatten(1).sort(dim=1).values)
    many = torch.rand(1, 1, 8, 8).repeat(50, 1, 1, 1)
    assert not torch.equal(Roll(0.25)(many, streams(50), 0), Roll(0.25)(many, streams(50), 1))


def test_coarse_is_the_mean_of_two_by_two_pixels():
    images = torch.tensor([[[[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 0.0, 4.0]]]])
    expected = torch.tensor([[[[4.0, 4.0, 1.0, 1.0], [4.0, 4.0, 1.0, 1.0]]]])
    assert torch.equal(coarse(images, streams(1), 0), expected)


def test_total_variation_by_hand():
    images = torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    # across: -3, 4; down: -4, 3; falling diagonal: 0; rising diagonal: 4 - 3
    assert total_variation(images, 1).tolist() == pytest.approx([5 + 5 + 1, 0])
    assert total_variation(images[[0, 0, 1, 1]], 2).tolist() == pytest.approx([11 * math.sqrt(2), 0])


def test_statistics_distance_by_hand():
    # channel means 2 and 0, variances 1 and 4, over two images of one pixel each
    inputs = torch.tensor([[[[1.0]], [[2.0]]], [[[3.0]], [[-2.0]]]])
    layer = Normalisation(inputs, torch.tensor([-1.0, 4.0]), torch.tensor([1.0, 1.0]))
    assert statistics_distance([layer], 2, 1.0).item() == pytest.approx(5 + 3)
    assert statistics_distance([layer, layer], 2, 10.0).item() == pytest.approx(10 * 8 + 8)


def test_statistics_are_over_a_group_and_its_positions_and_match_those_of_the_whole():
    inputs = torch.randn(6, 3, 4, 4)
    part = inputs[3:]
    exact = Normalisation(inputs, part.mean(dim=(0, 2, 3)), part.var(dim=(0, 2, 3), correction=0))
    first, second = statistics_distance([exact], 3, 1.0).tolist()
    assert second == pytest.approx(0, abs=1e-5) and first > 0.01
