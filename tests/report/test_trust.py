from dataclasses import replace

import pytest

from mi_audit.report import trust
from mi_audit.report.findings import pseudonym
from tests.report import sample


def facts(**more):
    return dict(trust.gauge(sample.trusted(verdict=sample.decided(exposure=sample.exposure(**more)))).facts)


def test_the_gauge_holds_the_limit_and_the_corrected_bound():
    gauge = trust.gauge(sample.trusted())
    assert (gauge.axis.low, gauge.axis.high) == (0.0, pytest.approx(0.1)) and gauge.limit == 100.0
    control, measured = gauge.whiskers
    assert (control.side, control.mid) == ("control", pytest.approx(3.3))
    assert (measured.low, measured.mid, measured.high) == pytest.approx((2.7, 10.0, 28.4))


def test_the_gauge_says_how_it_was_counted():
    found = facts()
    assert found["exposed"] == "3 of 300 identities attacked, of 530 there are"
    assert found["95% bounds"] == "0.3% to 2.6%, each one-sided, hypergeometric"
    assert found["corrected upper bound"] == "2.8%, since the verifier may miss 10% of leaks"
    assert found["limit"] == "10%" and found["strongest control"] == "1 of 300"
    assert found["without a value"].startswith("1, counted as exposed")
    assert found["would decide"] == "about 40 more identities, if the share stayed"


def test_what_does_not_apply_is_not_said():
    found = facts(total=None, sensitivity=1.0, missing=0, more=None, control=None)
    assert set(found) == {"exposed", "95% bounds", "limit", "strongest control"}
    assert found["exposed"] == "3 of 300 identities attacked" and found["strongest control"] == "none measured exposure"


def test_other_policies_have_no_gauge():
    assert trust.gauge(sample.audit()) is None
    assert trust.gauge(sample.audit(verdict=sample.failing())) is None


def test_controls_are_explained_and_leaks_name_their_control():
    found = trust.controls(sample.trusted())
    assert found.columns == ("Attack accuracy, top-1", "KNN distance, squared", "Accepted by the target")
    assert [row.title for row in found.rows] == ["control: random prior", "control: permuted labels (ppa)"]
    assert "without any model" in found.rows[0].isolates and "other classes" in found.rows[1].isolates
    assert found.rows[0].values[0].value == 0.12
    (leak,) = found.leaks
    assert (leak.attack, leak.control, leak.title) == ("PPA", "control: random prior", "Exposure beyond the control")


def test_a_control_says_how_it_was_made():
    note = "Trained without the attacked people."
    floor = replace(sample.control(), name="control:counterfactual:ppa", note=note)
    (found,) = trust.controls(sample.trusted(attacks=(sample.attack("ppa", 0.4), floor))).rows
    assert (found.title, found.note) == ("control: counterfactual (ppa)", note)
    assert "never met these people" in found.isolates


def test_the_worst_identity_is_the_exposed_one_then_the_most_accurate():
    found = trust.worst(sample.trusted())
    assert [identity.name for identity in found] == ["four", "three", "two", "one", "zero"]
    first = found[0]
    assert (first.pseudonym, first.exposed, first.attack) == (pseudonym("four"), 1.0, "PPA")
    assert first.accuracy == pytest.approx(0.68 + 0.16 + 0.02)
    assert first.distance == pytest.approx(9 - 5 * (0.68 + 0.16 + 0.02))


def test_names_can_be_left_out_and_only_the_worst_are_listed():
    assert all(identity.name == "" for identity in trust.worst(sample.trusted(), names=False))
    values = tuple(sample.ClassValue(label=k, seed=0, value=k / 40, count=1) for k in range(40))
    found = (replace(sample.attack("gmi", 0.3).measurements[0], per_class=values),)
    many = sample.audit(
        attacks=(sample.attack("gmi", 0.3, measurements=found),),
        classes=tuple(f"p{k}" for k in range(40)),
        attacked=tuple(range(40)),
    )
    assert [identity.name for identity in trust.worst(many)] == [f"p{k}" for k in range(39, 29, -1)]


def test_classes_without_any_value_are_left_out():
    bare = tuple(replace(attack, measurements=()) for attack in sample.audit().attacks)
    assert trust.worst(sample.audit(attacks=bare)) == ()
