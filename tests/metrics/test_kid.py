import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from mi_audit.metrics import kid
from mi_audit.metrics.kid import KID, Blocks, jackknife, kernel_blocks
from tests.metrics.evidence import evidence


def measure(found):
    (measurement,) = KID().measure(found)
    return measurement


def random(rows, width=5, seed=0, shift=0.0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) + shift


def reference(first, second):
    """The estimate written down pair by pair."""
    first, second = first.double().numpy(), second.double().numpy()
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    own = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (first, second)]
    return sum(own) - 2 * kernel(first, second).mean()


def test_one_feature_solved_by_hand():
    # kernel (x y + 1)^3: 27 within the reconstructions (x = y = sqrt 2), 1 within the private images (0), 1 across
    found = kernel_blocks(torch.full((2, 1), 2**0.5), torch.tensor([0, 1]), torch.zeros(2, 1), torch.tensor([0, 1]))
    assert found.discrepancy() == pytest.approx(27 + 1 - 2)


def test_agrees_with_the_sum_over_pairs_across_chunks(monkeypatch):
    monkeypatch.setattr(kid, "CHUNK", 4)
    first, second = random(11), random(14, seed=1, shift=0.4)
    labels, others = torch.arange(11) % 3, torch.arange(14) % 4
    blocks = kernel_blocks(first, labels, second, others)
    assert blocks.discrepancy() == pytest.approx(reference(first, second))
    for place, without in enumerate(blocks.without_each()):
        assert float(without) == pytest.approx(reference(first[labels != place], second[others != place]))


@pytest.mark.parametrize(("rows", "width"), [(2, 3), (40, 8), (90, 200)])
def test_agrees_with_torch_fidelity_on_the_same_features(rows, width):
    first, second = random(rows, width), random(rows, width, seed=1, shift=0.4)
    whole = {"kid_subsets": 1, "kid_subset_size": rows, "verbose": False}
    expected = kid_features_to_metric(first.double(), second.double(), **whole)[KEY_METRIC_KID_MEAN]
    labels = torch.arange(rows) % 4
    assert kernel_blocks(first, labels, second, labels).discrepancy() == pytest.approx(expected)


def test_is_unbiased_where_both_sets_are_alike():
    labels = torch.arange(20) % 5
    values = [
        kernel_blocks(random(20, seed=seed), labels, random(20, seed=1000 + seed), labels).discrepancy()
        for seed in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert min(values) < 0  # an unbiased estimate of zero has to be


def test_the_interval_is_a_jackknife_over_identities():
    labels = torch.arange(12) % 3
    blocks = kernel_blocks(random(12), labels, random(12, seed=1, shift=1.0), labels)
    interval = jackknife(blocks)
    left = blocks.without_each().numpy()
    error = (2 / 3 * np.square(left - left.mean()).sum()) ** 0.5
    assert interval.method == "jackknife over 3 identities"
    assert interval.high - blocks.discrepancy() == pytest.approx(4.302652729749464 * error)  # t with 2 degrees
    assert blocks.discrepancy() - interval.low == pytest.approx(4.302652729749464 * error)


def test_one_identity_has_a_value_and_no_interval():
    private = evidence([0]).private.select(torch.zeros(4, dtype=torch.int64))
    found = measure(evidence([0, 0, 0], private=private, private_features=random(4, 8)))
    assert found.value is not None and found.interval is None
    assert found.reason == "too few identities or images to leave one identity out: no interval"


def test_an_identity_that_cannot_be_left_out_leaves_no_interval():
    one = torch.ones(1, 1, dtype=torch.float64)
    counts = torch.tensor([3.0, 1.0], dtype=torch.float64)
    blocks = Blocks(one.expand(2, 2), one.expand(2, 2), one.expand(2, 2), counts, counts)
    assert jackknife(blocks) is None


def test_a_set_of_one_or_a_feature_that_is_not_finite_has_a_reason():
    assert (
        measure(evidence([0])).reason
        == "two images are needed on each side, got 1 reconstructions and 8 private images"
    )
    found = measure(evidence([0, 1], features=torch.full((2, 8), torch.inf)))
    assert (found.value, found.reason) == (None, "a feature is not finite")


def test_names_the_extractor_and_speaks_neither_for_nor_against_leakage(monkeypatch):
    found = measure(evidence([0, 1, 2]))
    assert (found.name, found.leak_grows) == ("kid_evaluator", None)
    assert found.protocol == "kid_evaluator/set/all/none@toy-00000000#cubic-train-d8-raw"
    monkeypatch.setattr(kid, "inception_features", lambda _device: lambda images: images.flatten(1)[:, :1])
    pixels = torch.full((4, 3, 8, 8), 255, dtype=torch.uint8)
    found = measure(evidence([0, 1, 2, 3], pixels=pixels))
    assert (found.name, found.protocol) == ("kid", "kid/set/all/none@inception-2015-12-05#cubic-train-d1-raw")
    assert found.value == pytest.approx(8 + 1 - 2)  # all ones against all zeros
