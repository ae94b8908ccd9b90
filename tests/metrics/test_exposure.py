from typing import Any

import pytest
import torch
from scipy import stats

from mi_audit.core.metric import Evidence, Verification
from mi_audit.metrics.exposure import Exposure
from tests.metrics.evidence import evidence


def bright(pixels, labels):
    """Whether the first pixel says that this is the person it claims to be."""
    return pixels[:, 0, 0, 0].long() == labels + 100


def verifier(classes: list[int], train: Any = bright) -> Verification:
    return Verification(name="toy-1", classes=torch.tensor(classes), held_out=bright, train=train)


def case(rows: list[tuple[int, int, float, int]], **changes: Any) -> Evidence:
    """Reconstructions as (class, seed, confidence, first pixel)."""
    labels, seeds, confidence, pixel = zip(*rows, strict=True)
    pixels = torch.zeros(len(rows), 3, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor(pixel, dtype=torch.uint8)
    facts = {"verify": verifier(sorted(set(labels))), "confidence": torch.tensor(confidence), "pixels": pixels}
    return evidence(list(labels), seeds=torch.tensor(seeds), **{**facts, **changes})


def test_only_the_surest_picture_of_each_class_counts():
    found = Exposure().measure(case([(0, 0, 0.9, 100), (0, 0, 0.1, 7), (1, 0, 0.2, 101), (1, 0, 0.8, 7)]))[0]
    assert [(row.label, row.value, row.count) for row in found.per_class] == [(0, 1.0, 1), (1, 0.0, 1)]
    assert found.value == 0.5 and found.count == 2 and found.counted == "identities"


def test_of_equally_sure_pictures_the_first_counts():
    found = Exposure().measure(case([(0, 0, 0.5, 7), (0, 0, 0.5, 100)]))[0]
    assert found.value == 0.0


def test_every_seed_has_its_own_surest_picture_and_identities_are_what_is_counted():
    rows = [(0, 0, 0.9, 100), (0, 1, 0.9, 7), (1, 0, 0.9, 101), (1, 1, 0.9, 101), (2, 0, 0.9, 7), (2, 1, 0.9, 7)]
    found = Exposure().measure(case(rows))[0]
    assert [(row.label, row.seed, row.value) for row in found.per_class] == [
        (0, 0, 1.0), (0, 1, 0.0), (1, 0, 1.0), (1, 1, 1.0), (2, 0, 0.0), (2, 1, 0.0),
    ]  # fmt: skip
    assert found.value == pytest.approx(0.5) and found.count == 3


def test_the_interval_is_the_exact_binomial_over_identities():
    found = Exposure().measure(case([(c, 0, 1.0, 100 + c if c < 3 else 0) for c in range(8)]))[0]
    exact = stats.binomtest(3, 8).proportion_ci(0.95, "exact")
    assert (found.interval.low, found.interval.high) == pytest.approx((exact.low, exact.high))
    assert found.protocol == "exposure/identity/sel1/target-conf@toy-1#audit-v1"
    assert found.unit == "share" and found.leak_grows


def test_training_photographs_are_compared_with_separately():
    nobody = verifier([0, 1], lambda _pixels, labels: torch.zeros(len(labels), dtype=torch.bool))
    found = Exposure().measure(case([(0, 0, 1.0, 100), (1, 0, 1.0, 101)], verify=nobody))
    assert [one.value for one in found] == [1.0, 0.0, 0.0]
    assert found[1].protocol == "exposure_train/identity/sel1/target-conf@toy-1#audit-v1"


def test_the_gap_counts_people_whom_only_the_evaluator_recognises():
    logits = torch.eye(8)[[0, 1, 5, 5]]
    found = Exposure().measure(
        case([(0, 0, 1.0, 100), (1, 0, 1.0, 7), (2, 0, 1.0, 7), (3, 0, 1.0, 103)], logits=logits)
    )
    assert found[2].name == "type1_gap" and [row.value for row in found[2].per_class] == [0, 1, 0, 0]
    assert found[2].leak_grows is None


def test_classes_without_held_out_photographs_are_left_out():
    found = Exposure().measure(case([(0, 0, 1.0, 100), (1, 0, 1.0, 101)], verify=verifier([1])))
    assert all([row.label for row in one.per_class] == [1] and one.count == 1 for one in found)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"verify": None, "unverified": "no labels; give --verifier MODEL"}, "give --verifier"),
        ({"confidence": None}, "surest"),
        ({"verify": verifier([6])}, "held-out photograph"),
    ],
)
def test_without_a_judge_there_is_no_number_and_a_reason(changes, reason):
    for one in Exposure().measure(case([(0, 0, 1.0, 100)], **changes)):
        assert one.value is None and one.interval is None and reason in one.reason
        assert one.count == 0 and one.per_class == ()
