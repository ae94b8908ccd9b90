from dataclasses import replace

import pytest

from mi_audit.audit.compare import attack_change, compare, leakage_meaning, paired, summarise, utility_change
from mi_audit.core.errors import ConfigError
from mi_audit.core.report import ClassValue, Interval, Quantity
from tests.report.sample import audit as audit_report
from tests.report.sample import change


def rows(values: list[float], seed: int = 0, count: int = 5) -> tuple[ClassValue, ...]:
    return tuple(ClassValue(label=label, seed=seed, value=value, count=count) for label, value in enumerate(values))


def test_differences_are_paired_by_class_and_seed():
    before, after = rows([0.2, 0.4, 0.6]), rows([0.1, 0.4, 0.2])
    difference = paired(before, after, "share")
    assert difference.value == pytest.approx(-0.5 / 3)
    assert difference.count == 3 and difference.interval is not None


def test_a_class_missing_on_one_side_is_left_out():
    difference = paired(rows([0.2, 0.4, 0.9]), rows([0.1, 0.2]), "share")
    assert difference.value == pytest.approx(-0.15)
    assert difference.count == 2


def test_nothing_in_common_has_a_reason_and_no_value():
    difference = paired(rows([0.2], seed=0), rows([0.2], seed=1), "share")
    assert difference.value is None and difference.reason


def test_identities_that_all_agree_still_have_an_interval_of_some_width():
    difference = paired(rows([0.2] * 4), rows([0.2] * 4), "share")
    assert difference.value == 0
    assert difference.interval is not None
    assert difference.interval.high == pytest.approx(1 - 0.025 ** (1 / 4))  # zero of four identities


def test_classes_that_kept_their_accuracy_have_no_interval():
    """Accuracy counts images: the number of classes bounds nothing about it."""
    difference = paired(rows([0.2] * 4), rows([0.2] * 4), "share", samples=False)
    assert difference.value == 0 and difference.interval is None and difference.reason


def quantity(low: float, high: float) -> Quantity:
    return Quantity(
        value=(low + high) / 2, unit="share", count=9, counted="x", interval=Interval(low=low, high=high, method="m")
    )


@pytest.mark.parametrize(
    ("low", "high", "grows", "meaning"),
    [
        (-0.3, -0.1, True, "less leakage"),
        (-0.3, -0.1, False, "more leakage"),
        (0.1, 0.3, True, "more leakage"),
        (0.1, 0.3, False, "less leakage"),
        (-0.1, 0.3, True, "no significant change"),
        (0.0, 0.3, True, "no significant change"),
        (0.1, 0.3, None, "higher"),
        (-0.3, -0.1, None, "lower"),
    ],
)
def test_a_difference_means_something_when_its_interval_excludes_zero(low, high, grows, meaning):
    assert leakage_meaning(quantity(low, high), grows) == meaning


def test_without_an_interval_nothing_is_claimed():
    bare = Quantity(value=-0.5, unit="share", count=1, counted="x", reason="one class")
    assert leakage_meaning(bare, True) == "not comparable"


def test_utility_weighs_classes_by_their_test_images():
    report = audit_report()
    first = ClassValue(label=0, seed=0, value=1.0, count=30)
    model = replace(report.targets[0], accuracy_per_class=(first, replace(first, label=1, value=0.5, count=10)))
    worse = replace(model, accuracy_per_class=(replace(first, value=0.8), replace(first, label=1, value=0.5, count=10)))
    change = utility_change((model,), (worse,))
    assert change.difference.value == pytest.approx(-0.2 * 30 / 40)


def test_measurements_of_different_protocols_are_never_compared():
    attack = audit_report().attacks[0]
    one = attack.measurement("attack_acc1")
    assert one is not None
    other = replace(attack, measurements=(replace(one, protocol="another"),))
    assert attack_change(attack, other, one).meaning == "not comparable"


def test_audits_of_different_data_are_refused():
    report = audit_report()
    with pytest.raises(ConfigError, match="same private data"):
        compare(report, replace(report, private=replace(report.private, fingerprint="other")))


def test_an_audit_compared_with_itself_shows_no_change():
    result = compare(audit_report(), audit_report())
    assert {change.meaning for change in result.changes} <= {"no significant change", "not comparable"}
    assert "no significant change" in summarise(list(result.changes))


def test_the_summary_names_exposed_identities_first_of_all_attacks():
    accuracy = change("utility", "accuracy", (0.9, 0.8), 0.01, "worse")
    leak = change("ppa", "attack_acc1", (0.7, 0.6), 0.2, "no significant change")
    exposed = [change(name, "exposure", (0.5, 0.25), 0.1, "less leakage") for name in ("all attacks", "ppa")]
    sentence = summarise([accuracy, leak, replace(exposed[0], before=quantity(0.4, 0.8)), exposed[1]])
    assert "exposed identities from 60.0% [40.0, 80.0] to 25.0%" in sentence and "(less leakage)" in sentence
