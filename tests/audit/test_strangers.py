from dataclasses import replace
from hashlib import sha256

import pytest
import torch

from mi_audit.audit.strangers import NOBODY, purged, seated
from mi_audit.core.dataset import Dataset, Splits

PARTS = ("train", "val", "test")


def noise(sizes: dict[str, int], seed: int, names: tuple[str, ...] | None = None) -> Dataset:
    """Pictures of noise: no two are alike."""
    labels = torch.tensor([label for label, size in enumerate(sizes.values()) for _ in range(size)], dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Dataset("noise", pixels, labels, names or tuple(sizes), f"noise-{seed}")


def private() -> Splits:
    """Four people with 8, 6, 5 and 7 pictures to train on, two to choose on, one to test on."""
    train = noise({"ann": 8, "bob": 6, "cid": 5, "dot": 7}, 1)
    val, test = noise(dict.fromkeys(train.classes, 2), 2), noise(dict.fromkeys(train.classes, 1), 3)
    return Splits(train, val, test)


PUBLIC = {"eve": 30, "fay": 11, "gus": 9, "hal": 4}


def seen(*data: Dataset) -> set[str]:
    return {sha256(image.tobytes()).hexdigest() for part in data for image in part.pixels.numpy()}


def of(data: Dataset, *labels: int) -> Dataset:
    return data.select(torch.isin(data.labels, torch.tensor(labels)).nonzero().squeeze(1))


@pytest.mark.parametrize("seed", range(4))
def test_no_picture_of_an_attacked_person_is_left_anywhere(seed):
    splits, public = private(), noise(PUBLIC, 4)
    theirs = seen(*(of(getattr(splits, part), 0, 2) for part in PARTS))
    public.pixels[3] = splits.train.pixels[0]  # ann, under another name
    public.pixels[35] = splits.test.pixels[2]  # cid
    splits.train.pixels[8] = splits.val.pixels[1]  # ann again, among the pictures of bob
    left = purged(splits, public, (0, 2))
    found = seated(left, seed)
    assert not theirs & seen(found.splits.train, found.splits.val, found.splits.test, left.public)
    assert len(left.public) == len(public) - 2 and len(of(found.splits.train, 1)) == 5


def test_nearly_the_same_picture_is_left_out_too():
    splits, public = private(), noise(PUBLIC, 4)
    public.pixels[3] = splits.train.pixels[0] // 8 * 8
    assert len(purged(splits, public, (0,)).public) == len(public) - 1
    assert purged(splits, public, (1,)).public is public  # so that what was trained on it serves again


def test_public_people_of_the_same_name_are_left_out():
    public = noise(PUBLIC, 4, ("ann", "bob", "gus", "hal"))
    left = purged(private(), public, (0,))
    assert set(left.public.labels.tolist()) == {1, 2, 3} and left.public.fingerprint != public.fingerprint
    assert all(seated(left, seed).strangers[0] in ("gus", "hal") for seed in range(5))  # bob has an output of his own


def test_others_keep_their_pictures_and_everybody_the_index():
    splits = private()
    found = seated(purged(splits, noise(PUBLIC, 4), (0, 2)), 0)
    for part in PARTS:
        ours, before = getattr(found.splits, part), getattr(splits, part)
        assert torch.equal(of(ours, 1, 3).pixels, of(before, 1, 3).pixels)
        assert torch.equal(of(ours, 1, 3).labels, of(before, 1, 3).labels)
        assert ours.fingerprint != before.fingerprint
    assert found.splits.train.classes[1] == "bob" and found.splits.train.classes[3] == "dot"
    assert found.splits.train.classes[0] == f"{found.strangers[0]} (public)" and len(found.splits.train.classes) == 4


def test_strangers_have_as_many_pictures_and_only_others_are_tested_on():
    found = seated(purged(private(), noise(PUBLIC, 4), (0, 2)), 0)
    assert found.splits.train.labels.bincount().tolist() == [8, 6, 5, 7]
    assert found.splits.val.labels.bincount().tolist() == [2, 2, 2, 2]
    assert found.splits.test.labels.tolist() == [1, 3] and found.short == ()
    pictures = [of(part, 0) for part in (found.splits.train, found.splits.val)]
    assert len(seen(*pictures)) == 10  # nobody is trained on the pictures that the epoch is chosen by
    public = noise(PUBLIC, 4)
    assert seen(*pictures) <= seen(of(public, public.classes.index(found.strangers[0])))


def test_a_small_stranger_is_divided_alike_and_named():
    found = seated(purged(private(), noise({"eve": 5, "fay": 4}, 4), (0, 2)), 0)
    # ann has 8 + 2 + 1 pictures, so of eve's 5 there are 5 * 2 // 11 = 0 to choose on and 5 * 1 // 11 = 0 to test on;
    # cid has 5 + 2 + 1, so of fay's 4 there are 4 * 2 // 8 = 1 and 4 * 1 // 8 = 0
    assert found.strangers == {0: "eve", 2: "fay"} and found.short == (0, 2)
    assert found.splits.train.labels.bincount().tolist() == [5, 6, 3, 7]
    larger = seated(purged(private(), noise({"eve": 7, "fay": 3}, 4), (2, 3)), 0)
    # dot has 7 + 2 + 1; eve's 7 become 7 * 2 // 10 = 1 and 7 * 1 // 10 = 0
    assert larger.splits.train.labels.bincount().tolist() == [8, 6, 3, 6]
    assert larger.splits.val.labels.bincount().tolist() == [2, 2, 0, 1]


def test_who_takes_a_place_follows_from_data_and_seed():
    people = {f"person {k}": 12 + k for k in range(20)}  # all have enough, so that the largest is not preferred
    left = purged(private(), noise(people, 4), (0, 1, 2))
    again = purged(private(), noise(people, 4), (0, 1, 2))
    drawn = [seated(left, seed).strangers for seed in range(6)]
    assert drawn == [seated(again, seed).strangers for seed in range(6)]
    assert len({tuple(one.values()) for one in drawn}) > 1
    assert all(len(set(one.values())) == 3 for one in drawn)
    marks = {seated(left, seed).splits.train.fingerprint for seed in range(6)}
    assert len(marks) == 6


@pytest.mark.parametrize("public", [{"images": 40}, {"eve": 2, "fay": 2}])
def test_without_labels_the_outputs_stay_empty(public):
    found = seated(purged(private(), noise(public, 4), (0, 2)), 0)
    assert found.strangers == {} and found.splits.train.classes[0] == NOBODY
    assert found.splits.train.labels.unique().tolist() == [1, 3]
    assert len(found.splits.train.classes) == 4


def test_with_too_few_strangers_those_with_fewest_pictures_have_none():
    found = seated(purged(private(), noise({"eve": 12, "fay": 12}, 4), (0, 1, 2, 3)), 0)
    assert set(found.strangers) == {0, 3}  # 8 and 7 pictures
    assert found.splits.train.labels.unique().tolist() == [0, 3]


def test_when_all_are_attacked_strangers_are_tested_on():
    found = seated(purged(private(), noise(dict.fromkeys("efghi", 12), 4), (0, 1, 2, 3)), 0)
    assert found.splits.test.labels.tolist() == [0, 1, 2, 3]
    assert not seen(found.splits.test) & seen(found.splits.train, found.splits.val)


def test_files_are_kept_where_all_are_known():
    splits, public = private(), noise(PUBLIC, 4)
    assert seated(purged(splits, public, (0,)), 0).splits.train.files == ()
    named = [replace(data, files=tuple(map(str, range(len(data))))) for data in (splits.train, splits.val, splits.test)]
    public = replace(public, files=tuple(f"public/{row}" for row in range(len(public))))
    train = seated(purged(Splits(*named), public, (0,)), 0).splits.train
    assert len(train.files) == len(train) and train.files[-1].startswith("public/")
