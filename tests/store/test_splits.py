from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.core.errors import DataError
from mi_audit.store.splits import divide, split
from tests.toy import dataset


def keys(count, start=0):
    return [f"image {number}" for number in range(start, start + count)]


@pytest.mark.parametrize(("count", "held"), [(1, 0), (3, 0), (4, 1), (9, 1), (10, 2), (13, 2), (20, 3), (100, 15)])
def test_fifteen_percent_of_a_class_for_each_missing_part(count, held):
    divided = divide([0] * count, ["train"] * count, keys(count), seed=0)
    assert (divided.count("val"), divided.count("test")) == (held, held)


def test_only_what_is_missing_is_carved_out_and_only_of_train():
    parts = ["train"] * 20 + ["test"] * 20
    divided = divide([0] * 40, parts, keys(40), seed=0)
    assert divided[20:] == ["test"] * 20
    assert [divided[:20].count(part) for part in ("train", "val", "test")] == [17, 3, 0]
    whole = ["train", "val", "test"] * 10
    assert divide([0] * 30, whole, keys(30), seed=0) == whole


@given(st.permutations(range(24)), st.integers(0, 5))
def test_division_does_not_depend_on_the_order_of_images(order, seed):
    labels, names = [row % 2 for row in range(24)], keys(24)
    divided = divide(labels, ["train"] * 24, names, seed)
    shuffled = divide([labels[row] for row in order], ["train"] * 24, [names[row] for row in order], seed)
    assert shuffled == [divided[row] for row in order]


def test_division_does_not_depend_on_other_classes():
    alone = divide([0] * 20, ["train"] * 20, keys(20), seed=3)
    together = divide([0] * 20 + [1] * 7, ["train"] * 27, keys(27), seed=3)
    assert together[:20] == alone


def test_seeds_divide_differently():
    assert len({tuple(divide([0] * 20, ["train"] * 20, keys(20), seed)) for seed in range(5)}) == 5


def test_undivided_data_are_split_into_disjoint_parts_of_their_own_fingerprint():
    data = dataset(per_class=20)
    splits = split(data, seed=1)
    parts = (splits.train, splits.val, splits.test)
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[14] * 4, [3] * 4, [3] * 4]
    assert len({image.numpy().tobytes() for part in parts for image in part.pixels}) == 80
    assert len({part.fingerprint for part in (*parts, data, split(data, seed=2).train)}) == 5


def test_too_few_images_cannot_be_split():
    with pytest.raises(DataError, match=r"expected a class with 4 images or more in toy .*got none for val"):
        split(replace(dataset(per_class=3)), seed=0)
