import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from mi_audit.nn.templates import NearestTemplate, medoids, pyramid, squared_distances
from tests.toy import dataset, prototypes


def flat(*shades: float) -> torch.Tensor:
    """Plain grey pictures: their squared distance is the squared difference of their shades, at every size."""
    return torch.tensor(shades)[:, None, None, None].expand(-1, 1, 8, 8)


def test_distances_of_plain_pictures_are_those_of_their_shades():
    found = squared_distances(pyramid(flat(0.0, 0.5)), pyramid(flat(0.0, 0.2, 1.0)))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.04, 1.0], [0.25, 0.09, 0.25]]))


def test_every_size_of_the_pyramid_weighs_the_same():
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2.0  # 16 px: sizes 4 and 8, where it is grey
    coarse = ((torch.arange(16)[:, None] // 2 + torch.arange(16) // 2) % 2).float()  # a chessboard at 8, grey at 4
    black = torch.zeros(1, 1, 16, 16)
    rows = pyramid(torch.stack([board, coarse])[:, None])
    assert rows.shape == (2, 16 + 64)
    torch.testing.assert_close(squared_distances(rows, pyramid(black)), torch.tensor([[0.25], [(0.25 + 0.5) / 2]]))


def test_logits_are_as_solved_by_hand():
    # Shades 0, 0.5, 1: squared distances 0.25, 0.25, 1, so D = 0.5 and h = 0.05; three classes: s = log(38) / log(11).
    net = NearestTemplate(flat(0.0, 0.5, 1.0))
    scale = math.log(0.95 / 0.05 * 2) / math.log(11)
    wanted = [scale * (math.log(11) - math.log1p(d / 0.05)) for d in (0.01, 0.16, 0.81)]
    torch.testing.assert_close(net(flat(0.1))[0], torch.tensor(wanted))


def test_a_template_is_sure_of_itself():
    probabilities = NearestTemplate(prototypes())(prototypes()).softmax(dim=1)
    torch.testing.assert_close(probabilities.diagonal(), torch.full((4,), 0.95))  # they are all equally far apart


def test_the_surest_picture_of_a_class_is_its_template_and_not_beyond_it():
    # A linear classifier, which the softmax of negative squared distances is, would be surest at the largest contrast.
    net, dark, bright = NearestTemplate(flat(0.4, 0.6)), flat(0.0), flat(0.4)
    sure = net(torch.cat([bright, dark])).softmax(dim=1)[:, 0]
    assert sure[0] > 0.9 > 0.8 > sure[1]


def test_descent_from_another_class_arrives_at_the_template():
    net, known = NearestTemplate(prototypes()), prototypes()
    pixels = known[3:].clone().requires_grad_(True)
    optimiser = torch.optim.Adam([pixels], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        cross_entropy(net(pixels), torch.tensor([0])).backward()
        optimiser.step()
    off = squared_distances(pyramid(pixels.detach()), net.templates)[0]
    assert off[0] < 0.1 * off[1:].min()


def test_half_precision_around_it_does_not_blur_the_distances():
    net, images = NearestTemplate(prototypes()), dataset().images()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(images)
    torch.testing.assert_close(rounded, net(images))


def test_medoids_are_the_rows_nearest_to_the_mean_of_their_class():
    # Class 1 has 0, 1, 5: mean 2, so 1. Class 0 has 4 and 8: both are 2 off, so the first.
    rows, labels = torch.tensor([[0.0], [4.0], [1.0], [8.0], [5.0]]), torch.tensor([1, 0, 1, 0, 1])
    assert medoids(rows, labels, 2).tolist() == [1, 2]


@pytest.mark.parametrize("side", [32, 64, 128])
def test_the_finest_copy_has_half_the_side(side):
    sizes = [4 * 2**k for k in range(10) if 4 * 2**k <= side // 2]
    assert pyramid(torch.zeros(1, 1, side, side)).shape[1] == sum(size * size for size in sizes)
