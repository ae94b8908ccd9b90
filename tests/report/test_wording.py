from dataclasses import replace

import pytest

from mi_audit.core.report import Interval, Quantity
from mi_audit.report import wording
from tests.report import sample

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.4321, "share", "43.2%"),
        (0.0, "share", "0.0%"),
        (7.4567, "feature distance", "7.46"),
        (1234.5, "feature distance", "1,234"),
        (None, "share", wording.DASH),
    ],
)
def test_numbers_read_in_their_unit(value, unit, text):
    assert wording.number(value, unit) == text


def test_intervals_follow_their_value():
    assert wording.with_interval(sample.share(0.5, 0.25, 0.75)) == "50.0% [25.0, 75.0]"
    assert wording.with_interval(sample.share(None)) == wording.DASH
    assert wording.rounded(sample.share(0.5, 0.25, 0.75)) == "50% (25 to 75%)"


def test_differences_are_signed_and_in_points():
    bounds = Interval(low=-0.2, high=0.1, method="by hand")
    change = Quantity(value=-0.05, unit="share", count=1, counted="pairs", interval=bounds)
    assert wording.difference(change) == f"{MINUS}5.0 pts [{MINUS}20.0, +10.0]"
    assert wording.difference(change, spread=False, unit=False) == f"{MINUS}5.0"


def test_headline_names_the_strongest_attack_and_what_guessing_reaches():
    head = wording.headline(sample.audit(verdict=sample.failing()))
    assert (head.outcome, head.tone) == ("Fail", "bad")
    assert "PPA" in head.sentence and "68% (57 to 79%)" in head.sentence and "reach 12%" in head.sentence


def test_headline_without_attack_or_control_claims_nothing():
    assert "nothing can be said" in wording.headline(sample.audit(attacks=(sample.control(),))).sentence
    assert "no control" in wording.headline(sample.audit(attacks=(sample.attack("gmi", 0.3),))).sentence


def test_flags_and_failures_of_both_sides_are_warnings():
    flagged = sample.audit(
        attacks=(sample.attack("gmi", 0.1, flags=("NOT_CONVERGED",), failed=("gmi-s0: out of memory",)),)
    )
    found = wording.warnings(
        sample.comparison(before=flagged, after=replace(flagged, warnings=("shared architecture",)))
    )
    assert found[0] == "shared architecture"
    assert "Before: GMI: NOT_CONVERGED" in found and "After: GMI: job failed, gmi-s0: out of memory" in found


def test_a_missing_metric_is_named_once_with_its_reason():
    assert wording.unmeasured(sample.comparison()) == ("FID in evaluator features: fewer than 2 images per feature",)


@pytest.mark.parametrize(("seconds", "text"), [(2.34, "2.3 s"), (141.3, "2 min 21 s"), (7322.0, "2 h 2 min")])
def test_durations(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "yes"), (0.123456, "0.1235"), ((1, 2), "1, 2"), ({"a": 1.5}, "a 1.5"), (None, wording.DASH), ("x", "x")],
)
def test_settings_are_one_line(value, text):
    assert wording.setting(value) == text


def test_the_exposure_is_one_line_and_one_sentence():
    assert wording.exposure_line(sample.exposure()).startswith("exposure 3/300 = 1.0% (95% upper 2.6%, 2.8% with ")
    head = wording.headline(sample.trusted())
    assert "3 of 300 attacked identities" in head.sentence and "at most 2.8% of all" in head.sentence


def test_the_control_of_the_same_prior_is_the_random_one():
    first = replace(sample.control(), name="control:permuted-labels:ppa")
    report = sample.audit(attacks=(sample.attack("ppa", 0.3), first, sample.control()))
    assert wording.control_for(report, report.attacks[0]).name == "control:random-prior"


def test_controls_say_what_they_isolate():
    assert "untrained weights" in wording.isolates("control:untrained:gmi")
    assert wording.isolates("control:else") == ""
    assert wording.attack_title("control:permuted-labels:gmi") == "control: permuted labels (gmi)"


def test_notes_on_controls_are_said_once():
    made = [
        replace(sample.control(), name=f"control:counterfactual:{name}", note="It is so.") for name in ("gmi", "ppa")
    ]
    report = sample.audit(attacks=(sample.attack("ppa", 0.3), *made))
    assert wording.notes(report) == ("Control counterfactual: It is so.",)
    assert wording.notes(sample.audit()) == ()
    both = sample.comparison(before=report, after=report)
    assert wording.notes(both) == (
        "Before: control counterfactual: It is so.",
        "After: control counterfactual: It is so.",
    )


@pytest.mark.parametrize(("text", "sentence"), [("", ""), ("weak", "Weak."), ("Weak.", "Weak."), ("so?", "So?")])
def test_fragments_become_sentences(text, sentence):
    assert wording.as_sentence(text) == sentence


def test_stopping_early_is_said():
    report = sample.audit()
    everybody = f"{len(report.attacked)} of {len(report.classes)} classes attacked"
    assert wording.attacked_line(report) == everybody
    line = wording.attacked_line(replace(report, planned=(0, 1, 2, 3, 4, 5, 6)))
    assert line == f"{everybody}; 7 were planned, but the bounds had decided"


def test_a_control_that_saw_the_model_is_not_called_random_pictures():
    permuted = replace(sample.control(), name="control:permuted-labels:ppa")
    sentence = wording.audit_sentence(sample.audit(attacks=(sample.attack("ppa", 0.3), permuted)))
    assert sentence.endswith("; the control (the reconstructions judged as other classes) reaches 12%.")
    assert wording.audit_sentence(sample.audit()).endswith("; random pictures that never saw the model reach 12%.")
    assert wording.control_words(replace(permuted, name="control:else")) == "control: else"
