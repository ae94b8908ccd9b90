from dataclasses import replace

import numpy as np
import pytest

from mi_audit.audit.compare import compare
from mi_audit.audit.gate import judge
from mi_audit.audit.regression import ALL, Pairs, _difference, exposure_changes
from mi_audit.nn.exact import lower_share, upper_share
from tests.audit.test_audit_v1 import POLICY, attack, audit, verifier


def changes(before, after):
    return {change.attack: change for change in exposure_changes(before, after)}


def test_a_change_is_judged_by_the_identities_that_changed_sides():
    worse = changes(audit(3), audit(9))["gmi"]
    assert worse.p_value == pytest.approx(2 / 64) and worse.meaning == "more leakage"
    assert worse.difference.value == pytest.approx(0.06) and worse.difference.interval.low > 0
    assert (worse.before.value, worse.after.value) == (0.03, 0.09)
    least, most = (bound(6, 100, alpha=0.005) for bound in (lower_share, upper_share))
    assert worse.difference.interval.low == pytest.approx((2 * 0.02 ** (1 / 6) - 1) * least)
    assert worse.difference.interval.high == pytest.approx(most)  # all six changed to the worse
    better = changes(audit(9), audit(3))["gmi"].difference.interval
    assert (better.low, better.high) == (pytest.approx(-most), pytest.approx(-worse.difference.interval.low))
    assert changes(audit(9), audit(3))["gmi"].meaning == "less leakage"
    slight = changes(audit(3), audit(8))["gmi"]  # 5 of 5: p = 1/16
    assert slight.meaning == "no significant change" and slight.difference.interval.low < 0


def test_nobody_changed_sides():
    same = changes(audit(5), audit(5))["gmi"]
    assert (same.difference.value, same.p_value, same.meaning) == (0.0, 1.0, "no significant change")
    assert same.difference.interval.high == -same.difference.interval.low == pytest.approx(1 - 0.05 ** (1 / 100))


def test_of_several_attacks_the_union_comes_first():
    labels = range(100)
    before = audit(attacks=(attack(labels), attack(labels, name="ppa")))
    after = audit(attacks=(attack(labels, range(4)), attack(labels, range(2, 8), "ppa")))
    found = changes(before, after)
    assert list(found) == [ALL, "gmi", "ppa"]
    assert [found[name].difference.value for name in found] == [0.08, 0.04, 0.06]


def test_only_identities_with_both_values_are_paired():
    labels, lost = range(100), {(label, seed) for label in range(50) for seed in (0, 1)}
    found = changes(audit(), audit(attacks=(attack(labels, range(60), missing=lost),)))["gmi"]
    assert (found.difference.count, found.difference.value) == (50, 0.2)
    nobody = {(label, 0) for label in range(1, 100)}
    alone = audit(attacks=(attack(labels, missing=nobody),))
    others = audit(attacks=(attack(labels, missing={(0, 0)}),))
    assert changes(alone, others)["gmi"].meaning == "not comparable"


def test_two_verifiers_cannot_be_compared():
    other = replace(verifier(), threshold=0.8)
    assert not exposure_changes(audit(), audit(verifier=other)) and not exposure_changes(audit(), audit(verifier=None))


def test_the_comparison_has_one_row_of_exposure_per_attack():
    found = [change for change in compare(audit(3), audit(9)).changes if change.name == "exposure"]
    assert [(change.attack, change.meaning) for change in found] == [("gmi", "more leakage")]


@pytest.mark.parametrize(("after", "expected"), [(3, "PASS"), (7, "PASS"), (8, "FAIL"), (2, "PASS")])
def test_a_regression_is_one_sided(after, expected):
    verdict = judge(audit(after), (), audit(3), decision=POLICY)
    assert {rule.id: rule.outcome for rule in verdict.rules}["audit-v1-regression"] == expected
    assert verdict.outcome == expected


def test_a_regression_that_cannot_be_shown_is_inconclusive():
    verdict = judge(audit(3), (), audit(3, verifier=None), decision=POLICY)
    assert verdict.outcome == "INCONCLUSIVE" and "not verified in both" in verdict.rules[2].reason


def regression(before, after):
    found = {rule.id: rule for rule in judge(audit(attacks=after), (), audit(attacks=before), decision=POLICY).rules}
    return found["audit-v1-regression"].outcome, found["audit-v1-regression"].reason


def test_a_regression_is_judged_by_the_attacks_that_ran_in_both():
    labels = range(100)
    gmi, ppa = attack(labels), attack(labels, range(50), "ppa")
    assert regression((gmi,), (gmi, ppa))[0] == "PASS"  # what the new attack finds was there before
    outcome, reason = regression((gmi, ppa), (gmi,))
    assert outcome == "INCONCLUSIVE" and "ppa of the baseline" in reason
    assert regression((gmi, ppa), (attack(labels, range(8)),))[0] == "FAIL"
    assert "no attack ran in both" in regression((gmi,), (ppa,))[1]


def test_a_regression_needs_the_same_settings_and_seeds():
    labels = range(100)
    one = attack(labels, settings={"steps": 70, "crops": (0.9, 1.0)}, seeds=(0, 1))
    saved = replace(one, settings={"crops": [0.9, 1.0], "steps": 70})
    assert regression((saved,), (one,))[0] == "PASS"
    for other, why in (
        (replace(one, settings={"steps": 7, "crops": (0.9, 1.0)}), "other settings"),
        (attack(labels, settings=one.settings, seeds=(0, 1, 2)), "other seeds"),
    ):
        outcome, reason = regression((one,), (other,))
        assert outcome == "INCONCLUSIVE" and why in reason


def test_the_interval_of_a_change_covers():
    rng, truth, missed = np.random.default_rng(3), 0.1 - 0.05, 0
    for worse, better, _ in rng.multinomial(80, [0.1, 0.05, 0.85], 400):
        interval = _difference(Pairs(count=80, only_before=int(better), only_after=int(worse))).interval
        missed += not interval.low <= truth <= interval.high
    assert missed <= 0.05 * 400
