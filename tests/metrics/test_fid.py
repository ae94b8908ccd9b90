import pytest
import torch

from mi_audit.metrics import fid
from mi_audit.metrics.fid import FID
from tests.metrics.evidence import evidence


def measure(found):
    (measurement,) = FID().measure(found)
    return measurement


def test_pictures_like_the_private_ones_have_distance_zero():
    found = measure(evidence(list(range(8))))
    assert found.name == "fid_evaluator"
    assert found.value == pytest.approx(0, abs=1e-9)


def test_says_how_many_images_and_features_it_stands_on():
    found = measure(evidence([0, 1, 2] * 3, private_features=torch.eye(8).repeat(2, 1)))
    assert found.value is not None and found.value > 0
    assert found.interval is None
    assert found.reason == "no interval (biased: fewer than 2d): 9 reconstructions, 16 private images, d = 8 features"
    features = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    found = measure(evidence([0] * 9, features=features, private_features=features))
    assert found.reason == "no interval (a distance of sets): 9 reconstructions, 9 private images, d = 3 features"


def test_a_single_reconstruction_has_no_distance():
    found = measure(evidence([0]))
    assert found.value is None
    assert found.reason == "two images are needed on each side, got 1 reconstructions and 8 private images"


def test_a_feature_that_is_not_finite_is_no_perfect_score():
    found = measure(evidence([0, 1], features=torch.full((2, 8), torch.nan)))
    assert (found.value, found.reason) == (None, "a feature is not finite")


def test_speaks_neither_for_nor_against_leakage():
    assert measure(evidence([0, 1])).leak_grows is None


def test_with_inception_at_hand_the_name_and_the_features_are_its_own(monkeypatch):
    monkeypatch.setattr(fid, "inception_features", lambda _device: lambda images: images.flatten(1)[:, :2])
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = 51  # a fifth of the range
    found = measure(evidence([0, 1, 2, 3], pixels=pixels))
    assert (found.name, found.protocol) == ("fid", "fid/set/all/none@inception-2015-12-05#train-d2-raw")
    assert found.value == pytest.approx(0.2**2)  # equal covariances, means a fifth apart
