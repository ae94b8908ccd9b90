import math

import numpy as np
import pytest
import torch
from scipy import linalg
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from mi_audit.nn.frechet import frechet_distance


def spread(*scales):
    """Points at plus and minus every scale along every axis: mean 0 and covariance diag(2 scale^2 / (2d - 1))."""
    axes = torch.diag(torch.tensor(scales, dtype=torch.float64))
    return torch.cat([axes, -axes])


def random(rows, width, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mix + shift


def test_a_set_has_no_distance_to_itself():
    features = random(50, 8, 0)
    assert frechet_distance(features, features[torch.randperm(50)]) == pytest.approx(0, abs=1e-10)


def test_shifted_sets_are_apart_by_the_square_of_the_shift():
    features = random(50, 4, 0)
    assert frechet_distance(features, features + torch.tensor([3.0, 0.0, 4.0, 0.0])) == pytest.approx(25)


def test_diagonal_covariances_solved_by_hand():
    unit = math.sqrt(5 / 2)  # makes the variances of three axes 1, 4 and 9
    first, second = spread(unit, 2 * unit, 3 * unit), spread(2 * unit, 2 * unit, unit)
    assert frechet_distance(first, second) == pytest.approx((1 - 2) ** 2 + (2 - 2) ** 2 + (3 - 1) ** 2)


@pytest.mark.parametrize(("rows", "width"), [(60, 10), (400, 12)])
def test_agrees_with_the_matrix_square_root(rows, width):
    first, second = random(rows, width, 1), random(rows + 7, width, 2, shift=0.5)
    a, b = first.numpy(), second.numpy()
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(one @ two).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(one + two - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("rows", "others", "width"), [(60, 45, 10), (500, 300, 64), (30, 20, 48)])
def test_agrees_with_torch_fidelity_on_the_same_features(rows, others, width):
    first, second = random(rows, width, 1), random(others, width, 2, shift=0.5)
    one, two = fid_features_to_statistics(first), fid_features_to_statistics(second)
    expected = fid_statistics_to_metric(one, two, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5)  # its roots of zero eigenvalues add up


def test_fewer_images_than_features_are_no_obstacle():
    first, second = torch.zeros(2, 50), torch.zeros(2, 50)
    first[0, 0], second[0, 1] = 2.0, 4.0
    # variances 2 and 8 along perpendicular axes: the traces add up, nothing overlaps
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + 2 + 8)


def test_is_symmetric_and_rotates():
    first, second = random(30, 6, 1), random(40, 6, 2)
    turn = torch.linalg.qr(random(6, 6, 3)).Q
    distance = frechet_distance(first, second)
    assert frechet_distance(second, first) == pytest.approx(distance)
    assert frechet_distance(first @ turn, second @ turn) == pytest.approx(distance)


def test_cannot_be_measured_on_one_image_or_on_nan():
    features = random(5, 3, 0)
    assert math.isnan(frechet_distance(features[:1], features))
    assert math.isnan(frechet_distance(features, features * math.inf))
