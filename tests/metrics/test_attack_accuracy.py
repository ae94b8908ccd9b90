import pytest
import torch

from mi_audit.core.errors import TargetError
from mi_audit.core.report import ClassValue
from mi_audit.metrics.attack_accuracy import AttackAccuracy, among_best
from mi_audit.nn.intervals import clopper_pearson
from tests.metrics.evidence import evidence, ranked


def measure(found):
    return AttackAccuracy().measure(found)


def test_counts_the_images_the_evaluator_assigns_to_their_class():
    logits = torch.stack([ranked(0, 0), ranked(0, 4), ranked(1, 5), ranked(2, 0)])
    first, fifth = measure(evidence([0, 0, 1, 2], logits=logits))
    assert (first.name, first.value, first.count, first.counted, first.unit) == (
        "attack_acc1",
        0.5,
        4,
        "images",
        "share",
    )
    assert (fifth.name, fifth.value) == ("attack_acc5", 0.75)


def test_values_per_class_and_seed():
    logits = torch.stack([ranked(0, 0), ranked(0, 1), ranked(1, 0)])
    first, _ = measure(evidence([0, 0, 1], logits=logits, seeds=torch.tensor([0, 0, 3])))
    assert first.per_class == (
        ClassValue(label=0, seed=0, value=0.5, count=2),
        ClassValue(label=1, seed=3, value=1.0, count=1),
    )


def test_the_protocol_names_metric_unit_subset_selector_and_judge():
    first, fifth = measure(evidence([0, 1]))
    assert first.protocol == "attacc1/image/all/none@toy-00000000"
    assert fifth.protocol == "attacc5/image/all/none@toy-00000000"


def test_the_interval_is_over_identities_not_over_images():
    first, _ = measure(evidence([0] * 50 + [1] * 50))
    assert first.interval is not None
    assert (first.interval.low, first.interval.high) == clopper_pearson(2, 2)


def test_the_interval_weighs_classes_by_their_images():
    labels = [0] * 20 + list(range(1, 8))
    logits = torch.stack([ranked(0, 0)] * 20 + [ranked(label, 7) for label in range(1, 8)])
    first, _ = measure(evidence(labels, logits=logits))
    assert first.value == pytest.approx(20 / 27)
    assert first.interval is not None and first.interval.low == 0 and first.interval.high > 0.85


def test_one_identity_has_a_value_and_a_reason_instead_of_an_interval():
    first, _ = measure(evidence([4, 4, 4]))
    assert (first.value, first.interval) == (1.0, None)
    assert first.reason == "fewer than two identities: no interval"


def test_top_five_of_five_classes_is_left_out():
    first, fifth = measure(evidence([0, 1, 2], logits=torch.eye(5)[:3]))
    assert first.value == 1.0
    assert (fifth.value, fifth.interval, fifth.per_class) == (None, None, ())
    assert fifth.reason == "top-5 of 5 classes is always right"


def test_a_tie_is_no_hit():
    flat = torch.zeros(2, 8)
    assert among_best(flat, torch.tensor([0, 7]), 1).tolist() == [False, False]
    assert among_best(flat, torch.tensor([0, 7]), 7).tolist() == [False, False]


def test_an_evaluator_that_answers_nan_fails_the_audit():
    with pytest.raises(TargetError, match="finite logits from the evaluator toy-00000000"):
        measure(evidence([0], logits=torch.full((1, 8), torch.nan)))
