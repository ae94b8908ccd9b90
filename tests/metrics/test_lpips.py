from dataclasses import replace
from functools import cache

import lpips as published
import pytest
import torch

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import DataError
from mi_audit.metrics import lpips
from mi_audit.metrics.lpips import LPIPS, nearest_training
from mi_audit.store.perceptual import halves
from tests.metrics.evidence import CLASSES, evidence

LABELS = [2, 0, 1, 0, 2, 1, 0, 0, 1]


@cache
def network(net="alex"):
    """The published distance on a random backbone, which no file is needed for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return published.LPIPS(net=net, pnet_rand=True, verbose=False)


def images(count, seed, size=32, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def case(**changes):
    """Nine reconstructions under two seeds, and 4, 4 and 3 training images of their classes."""
    private = Dataset("private", images(11, 1), torch.arange(11) % 3, CLASSES, "private")
    facts = {"pixels": images(9, 0), "seeds": torch.tensor([0] * 6 + [1] * 3), "private": private}
    return evidence(LABELS, **{**facts, **changes})


@pytest.fixture
def at_hand(monkeypatch):
    monkeypatch.setattr(lpips, "perceptual", lambda net, device: halves(network(net), device))
    monkeypatch.setattr(lpips, "LEAST", {"alex": 31, "vgg": 33})  # the second network takes long to build


@torch.no_grad()
def pair_by_pair(found, net="alex"):
    """The least distance as the package computes it, for one pair after the other."""
    wide = [(2 * pixels.float() / 255 - 1).expand(-1, 3, -1, -1) for pixels in (found.pixels, found.private.pixels)]
    return [
        min(
            float(network(net)(shown[None], real[None]))
            for real, owner in zip(wide[1], found.private.labels, strict=True)
            if owner == label
        )
        for shown, label in zip(wide[0], found.labels, strict=True)
    ]


@pytest.mark.parametrize("pixels", [lpips.PIXELS, 2 * 32 * 32, 1])
def test_is_the_least_distance_pair_by_pair_whatever_is_held_in_memory(pixels, monkeypatch):
    monkeypatch.setattr(lpips, "PIXELS", pixels)
    near = nearest_training(halves(network(), "cpu"), case())
    assert near.tolist() == pytest.approx(pair_by_pair(case()), rel=1e-4)


@pytest.mark.slow
def test_the_second_network_agrees_with_the_package_too():
    found = case()
    assert nearest_training(halves(network("vgg"), "cpu"), found).tolist() == pytest.approx(
        pair_by_pair(found, "vgg"), rel=1e-4
    )


def test_memory_is_bounded_by_images_and_pairs(monkeypatch):
    monkeypatch.setattr(lpips, "PIXELS", 2 * 32 * 32)
    whole, sizes = halves(network(), "cpu"), []
    paired = lpips._paired
    monkeypatch.setattr(lpips, "_paired", lambda *parts: sizes.append(len(parts[3])) or paired(*parts))
    seen = lpips.Perceptual(lambda pixels: sizes.append(len(pixels)) or whole.maps(pixels), whole.weights)
    nearest_training(seen, case())
    assert max(sizes) == 2


def test_a_copy_of_a_training_image_of_the_class_has_distance_zero(at_hand):
    private = case().private
    copies = private.pixels[[2, 3, 1, 0, 5, 4, 9, 6, 7]]  # LABELS are the classes of these rows
    alex, _ = LPIPS().measure(case(pixels=copies))
    assert alex.value == pytest.approx(0, abs=1e-9)
    other, _ = LPIPS().measure(case(pixels=private.pixels[[0, 1, 2] * 3]))  # all of another class
    assert other.value > 1e-3


def test_says_what_was_measured_and_resamples_people(at_hand):
    found, other = LPIPS().measure(case())
    expected = pair_by_pair(case())
    assert found.name == "lpips_alex_min_train" and other.name == "lpips_vgg_min_train"
    assert found.protocol == "lpips_alex_min_train/image/all/none@lpips-alex-v0.1#train-32px"
    assert found.value == pytest.approx(sum(expected) / 9, rel=1e-4)
    assert (found.unit, found.count, found.counted) == ("perceptual distance", 9, "images")
    assert found.interval.method == "bootstrap over 2 seeds x 3 identities"
    assert found.interval.low < found.value < found.interval.high
    assert [(row.label, row.seed, row.count) for row in found.per_class] == [
        (0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 1), (2, 0, 2)
    ]  # fmt: skip
    assert found.per_class[0].value == pytest.approx((expected[1] + expected[3]) / 2, rel=1e-4)
    assert found.leak_grows is False
    assert (other.value, other.reason) == (None, "33 pixels across are needed, got 32")


def test_grey_images_are_shown_to_the_network_in_three_equal_channels(at_hand):
    private = Dataset("private", images(11, 1, channels=1), torch.arange(11) % 3, CLASSES, "private")
    grey = case(pixels=images(9, 0, channels=1), private=private)
    alex, _ = LPIPS().measure(grey)
    assert alex.value == pytest.approx(sum(pair_by_pair(grey)) / 9, rel=1e-4)


def test_without_the_weights_there_is_no_value_and_the_reason_names_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for one, file in zip(LPIPS().measure(case()), ("alexnet-owt-7be5be79.pth", "vgg16-397923af.pth"), strict=True):
        assert (one.value, one.interval, one.per_class, one.count) == (None, None, (), 9)
        assert file in one.reason


def test_what_cannot_be_compared_has_a_reason(at_hand, monkeypatch):
    def reason(found):
        return LPIPS().measure(found)[0].reason

    small = Dataset("private", images(3, 1, size=30), torch.arange(3), CLASSES, "private")
    assert reason(case(private=small)) == "reconstructions and private images differ in shape"
    assert reason(case(private=small, pixels=images(9, 0, size=30))) == "31 pixels across are needed, got 30"
    nobody = torch.zeros(0, dtype=torch.int64)
    assert reason(replace(case(), labels=nobody, seeds=nobody, pixels=images(0, 0))) == "no reconstruction"
    alone = evidence([0], pixels=images(1, 0), private=case().private)
    assert reason(alone) == "fewer than two identities: no interval"
    monkeypatch.setattr(lpips, "nearest_training", lambda *_: torch.full((9,), torch.nan))
    assert reason(case()) == "a distance is not finite"


def test_a_class_without_private_images_is_refused(at_hand):
    with pytest.raises(DataError, match="class 1, got none"):
        LPIPS().measure(case(private=case().private.select(torch.tensor([0, 2]))))
