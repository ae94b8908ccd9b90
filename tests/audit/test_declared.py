from dataclasses import replace

import pytest

from mi_audit.audit.declared import reproduced
from mi_audit.core.quantity import Interval, Quantity
from mi_audit.nn.intervals import clopper_pearson
from tests.report.sample import model

OURS = {"method": "tldmi", "test_accuracy": 0.9}


def facts(right: int, of: int, **more: object):
    low, high = clopper_pearson(right, of)
    accuracy = Quantity(
        value=right / of, unit="share", count=of, counted="images", interval=Interval(low=low, high=high, method="x")
    )
    return replace(model(0.5), **{"accuracy": accuracy, "seed": None, **more})


@pytest.mark.parametrize(
    ("right", "of", "declared", "passed"),
    [
        (860, 1000, 0.86, True),
        (840, 1000, 0.86, True),  # two points are allowed, on either side
        (880, 1000, 0.86, True),
        (839, 1000, 0.86, None),  # 83.9 % [81.5, 86.1]: a thousand pictures cannot tell it from 84 %
        (815, 1000, 0.86, False),  # 81.5 % [78.9, 83.9]
        (815, 1000, 0.858, None),  # reaches 83.8 %
        (930, 1000, 0.86, False),  # better than declared is another model, or other pictures
        (7, 10, 0.86, None),  # [35, 93]
        (3, 10, 0.86, False),  # [7, 65]
        (86, 100, None, None),
    ],
)  # fmt: skip
def test_accuracy_has_to_be_within_two_points_unless_sampling_explains_it(right, of, declared, passed):
    flag = reproduced([facts(right, of)], declared)
    assert flag.id == "V1 ACCURACY" and flag.passed is passed
    assert (flag.clears == "") is (passed is True)
    assert declared is None or f"on {of} test images, {declared:.1%}" in flag.detail


def test_without_a_declaration_nothing_is_checked():
    flag = reproduced([facts(86, 100)], None)
    assert flag.detail == "not run: no accuracy is declared" and "--declared-accuracy" in flag.clears


def test_what_our_manifest_says_counts_unless_the_owner_says_otherwise():
    assert reproduced([facts(900, 1000, defense=OURS)], None).passed is True
    assert reproduced([facts(800, 1000, defense=OURS)], None).passed is False
    assert reproduced([facts(800, 1000, defense=OURS)], 0.8).passed is True
    assert reproduced([facts(800, 1000, defense={"test_accuracy": "high"})], None).passed is None


def test_what_is_declared_of_the_given_model_says_nothing_about_models_trained_here():
    assert reproduced([facts(900, 1000, defense=OURS, seed=0)], 0.5).passed is True
    assert reproduced([facts(900, 1000, seed=0)], 0.5).passed is None


def test_of_several_models_the_worst_counts():
    good, unknown, bad = facts(900, 1000, defense=OURS), facts(1, 2), facts(500, 1000, defense=OURS)
    assert reproduced([good, bad, unknown], None).passed is False
    assert reproduced([good, unknown], None).passed is None
    assert "50.0%" in reproduced([good, bad], None).detail


def test_a_model_without_test_images_cannot_be_checked():
    nothing = Quantity(value=None, unit="share", count=0, counted="images", reason="no test images")
    flag = reproduced([facts(1, 2, accuracy=nothing)], 0.9)
    assert flag.passed is None and "no test images" in flag.detail
