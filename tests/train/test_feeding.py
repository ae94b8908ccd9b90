from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.train.augment import DRAWS, augment
from mi_audit.train.feeding import Feed, balanced, resident, sent
from mi_audit.train.seeding import stream
from tests import toy


def numbered(*sizes: int) -> Dataset:
    """Classes of the given sizes; the one pixel of an image is its row."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    return Dataset("numbers", pixels, labels, tuple(map(str, range(len(sizes)))), "numbers")


def feed(data, batch_size, images_per_class=None, seed=3):
    return Feed(data, batch_size, "none", torch.contiguous_format, seed, "cpu", images_per_class)


def rows(batch):
    return (batch.images.flatten() * 255).round().int().tolist()


def epoch(*arguments, number=0, **options):
    return list(feed(*arguments, **options).epoch(number))


def test_the_plain_order_is_one_permutation_of_the_seed_and_the_epoch():
    data = toy.dataset()
    rng = stream(3, "epoch", 2)
    order = torch.randperm(len(data), generator=rng)
    expected = augment(data.images(order), torch.rand(len(data), DRAWS, generator=rng), "faces")
    batches = list(Feed(data, 7, "faces", torch.channels_last, 3, "cpu").epoch(2))
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.labels[order])
    assert [batch.done for batch in batches] == [7, 14, 21, 24]
    assert torch.equal(torch.cat([batch.rows for batch in batches]), order)


def test_balanced_batches_hold_k_images_of_each_of_p_classes():
    batches = epoch(numbered(*[8] * 12), 16, 4)  # 24 groups of 4, 6 batches of 4 groups
    assert len(batches) == len(feed(numbered(*[8] * 12), 16)) == 6
    assert all(sorted(Counter(batch.labels.tolist()).values()) == [4, 4, 4, 4] for batch in batches)


def test_sixteen_classes_of_four_have_ninety_six_pairs_of_one_class():
    labels = torch.arange(100).repeat_interleave(8)
    data = Dataset("many", torch.zeros(800, 1, 1, 1, dtype=torch.uint8), labels, tuple(map(str, range(100))), "many")

    def pairs(batches):
        return [(same.sum().item() - 64) // 2 for b in batches[:-1] for same in [b.labels[:, None] == b.labels]]

    assert set(pairs(epoch(data, 64, 4))) == {16 * 6}
    assert max(pairs(epoch(data, 64))) < 32  # 64 * 63 / 2 * 7 / 799 = 18 are expected at random


def test_a_balanced_epoch_serves_every_image_once_with_its_own_label():
    data = numbered(8, 3, 17, 5, 1)
    batches = epoch(data, 8, 4)
    served = [row for batch in batches for row in rows(batch)]
    assert sorted(served) == list(range(34))
    assert torch.cat([batch.rows for batch in batches]).tolist() == served
    assert torch.cat([batch.labels for batch in batches]).tolist() == data.labels[served].tolist()
    assert [batch.done for batch in batches] == [8, 16, 24, 32, 34]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 6), st.integers(0, 99))
def test_groups_are_near_the_wanted_size_and_differ_by_one_at_most(sizes, wanted, seed):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    rng = torch.Generator().manual_seed(seed)
    order = balanced(torch.randperm(len(labels), generator=rng), labels, wanted, rng)
    assert sorted(order.tolist()) == list(range(len(labels)))
    found, runs = labels[order].tolist(), {}
    starts = [place for place in range(len(found)) if place == 0 or found[place] != found[place - 1]]
    for start, stop in zip(starts, [*starts[1:], len(found)], strict=True):
        runs.setdefault(found[start], []).append(stop - start)
    for label, lengths in runs.items():
        groups = max(1, int(sizes[label] / wanted + 0.5))
        low, high = sizes[label] // groups, -(-sizes[label] // groups)
        # two groups of one class may meet where the other classes are small
        assert all(any(low * n <= length <= high * n for n in range(1, groups + 1)) for length in lengths)


@pytest.mark.parametrize(
    ("count", "lengths"), [(3, [3]), (5, [5]), (6, [3, 3]), (7, [3, 4]), (9, [4, 5]), (10, [3, 3, 4])]
)
def test_a_class_is_cut_into_near_equal_groups(count, lengths):
    labels = torch.cat([torch.zeros(count, dtype=torch.int64), torch.arange(1, 61)])
    rng = torch.Generator().manual_seed(0)
    order = balanced(torch.randperm(len(labels), generator=rng), labels, 4, rng)
    runs = "".join("x" if label == 0 else " " for label in labels[order].tolist()).split()
    assert sorted(len(run) for run in runs) == lengths


def test_a_large_class_is_spread_over_the_epoch():
    batches = epoch(numbered(64, *[8] * 8), 16, 4)  # half of the images are of class 0
    assert all(1 <= (batch.labels == 0).sum() // 4 <= 3 for batch in batches)


def test_few_classes_fill_the_batch_with_several_groups_each():
    batches = epoch(numbered(16, 16), 16, 4)
    assert [sorted(Counter(batch.labels.tolist()).values()) for batch in batches] == [[8, 8], [8, 8]]


def test_balanced_order_depends_on_seed_and_epoch_only():
    data = numbered(*[8] * 12)
    first = [rows(batch) for batch in epoch(data, 16, 4)]
    assert first == [rows(batch) for batch in epoch(data, 16, 4)]
    assert first != [rows(batch) for batch in epoch(data, 16, 4, seed=4)]
    later = epoch(data, 16, 4, number=1)
    assert first != [rows(batch) for batch in later]

    def partners(batches):
        return {frozenset(row for row in batch if row // 8 == c) for batch in batches for c in range(12)}

    assert partners(first) != partners([rows(batch) for batch in later])  # other images share a group
    assert {frozenset(row // 8 for row in batch) for batch in first} != {
        frozenset(row // 8 for row in rows(batch)) for batch in later
    }  # and other classes share a batch


def test_balanced_batches_are_augmented_with_their_own_numbers():
    data = toy.dataset()
    batches = list(Feed(data, 8, "faces", torch.contiguous_format, 3, "cpu", 2).epoch(0))
    assert [len(batch.images) for batch in batches] == [8, 8, 8]
    plain = list(Feed(data, 8, "none", torch.contiguous_format, 3, "cpu", 2).epoch(0))
    assert all(torch.equal(one.labels, other.labels) for one, other in zip(batches, plain, strict=True))
    assert not torch.equal(batches[0].images, plain[0].images)


@pytest.mark.parametrize("wanted", [0, 5])
def test_groups_of_which_two_do_not_fit_are_refused(wanted):
    with pytest.raises(ConfigError, match=r"expected from 1 to 4 images per class in a batch of 9, got"):
        feed(numbered(8, 8), 9, wanted)


def test_images_stay_where_they_are_when_a_quarter_of_the_memory_is_too_little(monkeypatch):
    data = numbered(100)  # 100 bytes
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    for free, there in ((400, 2), (399, 0)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device, free=free: (free, 10**9))
        moved.clear()
        resident(data, "cuda")
        assert len(moved) == there


def test_batches_for_an_accelerator_are_fetched_from_pinned_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **how: asked.append((device, how)) or self)
    sent(torch.zeros(2), "cuda:1")
    assert asked == ["pinned", ("cuda:1", {"non_blocking": True})]
    asked.clear()
    sent(torch.zeros(2), "cpu")
    assert asked == [("cpu", {})]
