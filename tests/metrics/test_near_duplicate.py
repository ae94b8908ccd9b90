import numpy as np
import pytest
import torch

from mi_audit.core.errors import DataError
from mi_audit.metrics import near_duplicate
from mi_audit.metrics.near_duplicate import NearDuplicates, nearest_training, pair_distances
from tests.metrics.evidence import evidence, grey, pictures


def measure(found):
    (measurement,) = NearDuplicates().measure(found)
    return measurement


def test_distances_are_root_mean_squares_of_pixels_between_zero_and_one():
    private = pictures([0, 51, 255, 10, 10], [0, 0, 0, 1, 1])
    assert pair_distances(private).tolist() == pytest.approx([0.2, 1.0, 0.8])  # two identical pictures say nothing
    near = nearest_training(grey(61, 20), torch.tensor([0, 1]), private)
    assert near.tolist() == pytest.approx([10 / 255, 10 / 255])


def test_counts_what_is_nearer_than_the_quantile_and_lists_it():
    private = pictures([0, 51, 255, 100], [0, 0, 0, 1])
    limit = np.quantile([0.2, 0.8, 1.0], 0.001)  # 0.2012: 51.3 grey levels
    shown = grey(51, 255 - 51, 103, 0, 100 + 52)
    found = measure(evidence([0, 0, 0, 1, 1], pixels=shown, private=private, seeds=torch.tensor([0, 0, 7, 0, 0])))
    assert (found.value, found.unit, found.count, found.leak_grows) == (2.0, "images", 5, True)
    assert limit == pytest.approx(0.2012)
    assert found.reason == (
        "exact count among 5 reconstructions, limit 0.201 from 3 pairs of training images; "
        "no held-out image to compare with; look at class 0 (seed 0), class 0 (seed 0)"
    )


def test_lists_the_nearest_first_and_only_a_few():
    private = pictures([0, 255], [0, 0])
    found = measure(evidence([0] * 7, pixels=grey(30, 20, 10, 0, 1, 2, 3), seeds=torch.arange(7), private=private))
    assert found.value == 7
    assert found.reason.endswith(
        "look at class 0 (seed 3), class 0 (seed 4), class 0 (seed 5), class 0 (seed 6), class 0 (seed 2) and 2 more"
    )


def test_says_how_many_held_out_images_come_as_near_by_chance():
    private, held_out = pictures([0, 51, 9], [0, 0, 1]), pictures([1, 250, 9, 9], [0, 0, 1, 2])
    found = measure(evidence([0], pixels=grey(200), private=private, held_out=held_out))
    assert found.value == 0
    assert found.reason.endswith("; as near are 1 of 2 held-out images")


def test_the_count_is_exact_so_that_a_gate_can_use_it():
    assert measure(evidence([0], private=pictures([0, 51], [0, 0]))).reason.startswith("exact")


def test_large_classes_are_sampled(monkeypatch):
    monkeypatch.setattr(near_duplicate, "MOST", 3)
    assert len(pair_distances(pictures(range(10), [0] * 10))) == 3


def test_what_cannot_be_compared_has_a_reason():
    assert measure(evidence([0, 1])).reason == "no class has two different private training images to compare"
    small = evidence([0], pixels=torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert measure(small).reason == "reconstructions and private images differ in shape"
    with pytest.raises(DataError, match="class 3"):
        measure(evidence([3], private=pictures([0, 51], [0, 0])))
