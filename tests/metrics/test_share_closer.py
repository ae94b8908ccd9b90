from itertools import combinations

import numpy as np
import pytest
import torch

from mi_audit.core.report import ClassValue
from mi_audit.metrics.share_closer import ShareCloser, first_is_closer, sign_test
from tests.metrics.evidence import evidence, grey, pictures


def case(shown, labels, train, held_out):
    """Reconstructions, training and held-out images of one grey level each; features are the levels."""
    feature = lambda data: data.pixels[:, 0, 0, :1].float()  # noqa: E731
    return evidence(
        labels, pixels=grey(*shown), features=grey(*shown)[:, 0, 0, :1].float(),
        private=train, private_features=feature(train), held_out=held_out, held_out_features=feature(held_out),
    )  # fmt: skip


def test_of_equal_sets_the_nearer_one_wins_and_a_tie_counts_half():
    first = torch.tensor([[1.0, 9.0], [5.0, 9.0], [3.0, 9.0]]).double()
    second = torch.tensor([[3.0, 4.0]] * 3).double()
    assert first_is_closer(first, second).tolist() == pytest.approx([1.0, 0.0, 0.5])


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_larger_set_is_thinned_to_the_size_of_the_smaller_one(kept):
    many = torch.tensor([0.1, 0.2, 0.2, 0.5, 0.7]).double()
    few = torch.tensor([0.2, 0.6, 0.9][:kept]).double()
    wins = [np.sign(float(few.min()) - min(chosen)) for chosen in combinations(many.tolist(), kept)]
    expected = (np.mean(wins) + 1) / 2
    assert float(first_is_closer(many[None], few[None])) == pytest.approx(expected)
    assert float(first_is_closer(few[None], many[None])) == pytest.approx(1 - expected)


def test_training_pictures_that_were_remembered_are_closer():
    train, held_out = pictures([10, 200, 60], [0, 0, 1]), pictures([50, 90, 100], [0, 0, 1])
    pixel, feature = ShareCloser().measure(case([10, 199, 60, 99], [0, 0, 1, 1], train, held_out))
    assert (pixel.name, pixel.value, pixel.count) == ("share_closer_pixel", 0.75, 4)
    assert pixel.per_class == (
        ClassValue(label=0, seed=0, value=1.0, count=2),
        ClassValue(label=1, seed=0, value=0.5, count=2),
    )
    assert pixel.interval is not None and pixel.interval.low < 0.75 < pixel.interval.high
    assert pixel.interval.method.endswith("sign test over people: 1 of 1 above one half, p = 0.5")
    assert pixel.protocol == "share_closer_pixel/image/all/none@pixels#l2-train-vs-test-equal-size"
    assert (feature.name, feature.value) == ("share_closer_evaluator", 0.75)
    assert feature.protocol.startswith("share_closer_evaluator/image/all/none@toy-00000000#")


def test_pictures_that_know_only_the_person_are_at_one_half():
    generator = torch.Generator().manual_seed(0)
    labels = [label for label in range(8) for _ in range(40)]
    levels = [torch.randint(0, 256, (count,), generator=generator).tolist() for count in (320, 320, 160)]
    halves = [label for label in range(8) for _ in range(20)]
    (pixel, _) = ShareCloser().measure(
        case(levels[0], labels, pictures(levels[1], labels), pictures(levels[2], halves))
    )
    assert pixel.interval.low < 0.5 < pixel.interval.high


def test_the_sign_test_counts_people():
    means = tuple(
        ClassValue(label=label, seed=seed, value=value, count=1)
        for label, values in enumerate([(1.0, 0.4), (0.9, 0.9), (0.2, 0.8), (0.0, 0.1), (0.6, 0.6)])
        for seed, value in enumerate(values)
    )
    assert sign_test(means) == (3, 4, 5 / 16)  # of four people that differ, three or more: (4 + 1) / 16
    assert sign_test(means[4:6]) == (0, 0, 1.0)


def test_classes_without_held_out_images_are_left_out():
    train, held_out = pictures([10, 60, 5], [0, 1, 2]), pictures([50, 100], [0, 1])
    pixel, _ = ShareCloser().measure(case([10, 60, 5], [0, 1, 2], train, held_out))
    assert (pixel.count, [row.label for row in pixel.per_class]) == (2, [0, 1])
    pixel, _ = ShareCloser().measure(case([10], [2], train, held_out))
    assert (pixel.value, pixel.reason) == (None, "no attacked class has both training and held-out images")


def test_without_held_out_images_or_with_other_shapes_there_is_a_reason():
    for found in ShareCloser().measure(evidence([0, 1])):
        assert (found.value, found.reason) == (None, "no held-out private images")
    train = pictures([10, 60], [0, 1])
    wide = evidence(
        [0, 1], pixels=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), private=train, held_out=train,
        features=torch.full((2, 8), torch.nan), private_features=torch.eye(8)[:2], held_out_features=torch.eye(8)[:2],
    )  # fmt: skip
    pixel, feature = ShareCloser().measure(wide)
    assert pixel.reason == "reconstructions and private images differ in shape"
    assert feature.reason == "a feature is not finite"
