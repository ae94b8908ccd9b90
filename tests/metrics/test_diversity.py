import pytest
import torch

from mi_audit.metrics.diversity import Diversity, spread
from tests.metrics.evidence import evidence


def measure(found):
    (measurement,) = Diversity().measure(found)
    return measurement


def test_copies_have_none_and_unrelated_pictures_have_one():
    assert spread(torch.ones(4, 3) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])) == pytest.approx(0)
    assert spread(torch.eye(3)) == pytest.approx(1)
    assert spread(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(2)


def test_is_the_mean_over_pairs():
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    assert spread(rows) == pytest.approx(1 - (2 * 0.5**0.5 + 0) / 3)


def test_pairs_are_of_one_class_and_one_seed():
    features = torch.eye(8)[[0, 0, 1, 1, 2, 3, 4]]
    found = measure(evidence([0, 0, 0, 0, 1, 1, 2], seeds=torch.tensor([0, 0, 1, 1, 0, 0, 0]), features=features))
    assert [(row.label, row.seed, row.count) for row in found.per_class] == [(0, 0, 2), (0, 1, 2), (1, 0, 2)]
    assert [row.value for row in found.per_class] == pytest.approx([0, 0, 1])
    assert found.value == pytest.approx(1 / 3)
    assert found.interval is not None and found.interval.low == pytest.approx(0)
    assert found.interval.high == pytest.approx(1)
    assert found.protocol == "diversity_1cos/identity/all/none@toy-00000000#within-seed-d8"


def test_one_picture_per_class_has_a_reason():
    found = measure(evidence([0, 1, 2]))
    assert (found.value, found.reason) == (None, "no class has two reconstructions under one seed")


def test_one_identity_has_no_interval_and_nan_no_value():
    found = measure(evidence([0, 0]))
    assert (found.value, found.interval) == (pytest.approx(0), None)
    assert found.reason == "fewer than two identities: no interval"
    found = measure(evidence([0, 0], features=torch.full((2, 8), torch.nan)))
    assert (found.value, found.reason, found.leak_grows) == (None, "a feature is not finite", None)
