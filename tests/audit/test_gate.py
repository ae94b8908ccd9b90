import contextlib
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.audit.expression import parse
from mi_audit.audit.gate import exit_code, failed_jobs, judge, sanity
from mi_audit.audit.plan import RulePlan
from mi_audit.core.errors import ConfigError, NothingToAudit
from mi_audit.core.report import Interval, Measurement
from tests.report import sample


def measurement(name, low, value, high, *, reason=None, protocol="p", grows=True):
    interval = None if low is None else Interval(low=low, high=high, method="by hand")
    return Measurement(
        name=name, protocol=protocol, value=value, unit="share", count=10, counted="images", interval=interval,
        reason=reason, leak_grows=grows,
    )  # fmt: skip


def attack(name="gmi", low=0.2, value=0.3, high=0.4, accepted=0.95, **more):
    found = (
        measurement("attack_acc1", low, value, high),
        measurement("target_acceptance", 0.9, accepted, 1.0, grows=None),
    )
    return sample.attack(name, 0.5, measurements=found, **more)


def floor(low=0.0, value=0.05, high=0.1, prior="gmi_gan"):
    found = (measurement("attack_acc1", low, value, high),)
    return sample.attack("control:random-prior", 0.1, role="control", prior=prior, measurements=found)


def report(*attacks, **more):
    return sample.audit(attacks=attacks, **more)


def outcome(result, when, baseline=None):
    verdict = judge(result, [RulePlan(id="r", when=when)], baseline)
    assert verdict.outcome == verdict.rules[0].outcome
    return verdict.outcome


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("attack_acc1 > 0.1", "FAIL"),
        ("attack_acc1 > 0.2", "INCONCLUSIVE"),  # the lower end does not exceed the limit
        ("attack_acc1 >= 0.2", "FAIL"),
        ("attack_acc1 > 0.3", "INCONCLUSIVE"),
        ("attack_acc1 > 0.4", "PASS"),  # the upper end does not exceed the limit
        ("attack_acc1 >= 0.4", "INCONCLUSIVE"),
        ("attack_acc1 > 0.5", "PASS"),
        ("attack_acc1 < 0.5", "FAIL"),
        ("attack_acc1 < 0.4", "INCONCLUSIVE"),
        ("attack_acc1 <= 0.4", "FAIL"),
        ("attack_acc1 < 0.2", "PASS"),
        ("attack_acc1 <= 0.2", "INCONCLUSIVE"),
        ("0.1 < attack_acc1", "FAIL"),
        ("attack_acc1 + 0.2 > 0.35", "FAIL"),
        ("attack_acc1 - 0.25 > -0.1", "FAIL"),
    ],
)
def test_a_rule_is_decided_by_the_interval(when, expected):
    assert outcome(report(attack()), when) == expected


def test_reason_names_attack_value_interval_limit_and_what_would_decide():
    verdict = judge(report(attack()), [RulePlan(id="r", when="attack_acc1 > 0.25")])
    reason = verdict.rules[0].reason
    assert reason.startswith("gmi: attack_acc1 = 0.3 [0.2, 0.4], limit 0.25: ")
    assert "4.0 times as many" in reason  # half width 0.1 has to become the gap 0.05


def test_without_an_attack_the_worst_one_decides():
    weak, strong = attack(low=0.0, value=0.02, high=0.05), attack("ppa", 0.6, 0.7, 0.8)
    assert outcome(report(weak, strong), "attack_acc1 > 0.1") == "FAIL"
    assert outcome(report(weak, strong), "attack_acc1[gmi] > 0.1") == "PASS"
    assert outcome(report(weak, attack("ppa", 0.05, 0.1, 0.2)), "attack_acc1 > 0.1") == "INCONCLUSIVE"


def test_names_with_hyphens_fit_between_brackets():
    two = report(attack("lomma-kedmi", 0.6, 0.7, 0.8), attack(low=0.0, value=0.0, high=0.01))
    assert outcome(two, "attack_acc1[lomma-kedmi] > 0.5") == "FAIL"
    assert outcome(two, "attack_acc1['gmi'] > 0.5") == "PASS"


def test_difference_to_the_control_combines_intervals_conservatively():
    leaky = report(attack(), floor())  # the difference lies in [0.2 - 0.1, 0.4 - 0.0]
    assert outcome(leaky, "attack_acc1 - control.attack_acc1 > 0.09") == "FAIL"
    assert outcome(leaky, "attack_acc1 - control.attack_acc1 > 0.11") == "INCONCLUSIVE"
    assert outcome(leaky, "attack_acc1 - control.attack_acc1 > 0.39") == "INCONCLUSIVE"
    assert outcome(leaky, "attack_acc1 - control.attack_acc1 > 0.41") == "PASS"


def test_control_is_the_one_of_the_attacks_prior():
    both = report(attack(), floor(0.5, 0.5, 0.5, prior="stylegan"), floor())
    assert outcome(both, "attack_acc1 - control.attack_acc1 > 0.09") == "FAIL"


def test_baseline_compares_the_same_attack():
    old = report(attack("ppa", 0.8, 0.9, 1.0), attack(low=0.0, value=0.05, high=0.1))
    new = report(attack("ppa", 0.8, 0.9, 1.0), attack())
    assert outcome(new, "attack_acc1[gmi] - baseline.attack_acc1[gmi] > 0.05", old) == "FAIL"
    assert outcome(new, "attack_acc1 - baseline.attack_acc1 > 0.05", old) == "FAIL"
    assert outcome(old, "attack_acc1[gmi] - baseline.attack_acc1[gmi] > 0.05", new) == "PASS"


def test_max_regression_is_a_rule_of_its_own():
    old, new = report(attack(low=0.0, value=0.05, high=0.1)), report(attack())
    verdict = judge(new, (), old, max_regression=0.05)
    assert verdict.outcome == "FAIL" and verdict.rules[0].id == "regression"
    with pytest.raises(ConfigError, match="give --baseline"):
        judge(new, (), None, max_regression=0.05)


def test_numbers_of_two_protocols_are_not_compared():
    found = (measurement("attack_acc1", 0.0, 0.0, 0.0, protocol="q"),)
    verdict = judge(report(attack()), (), report(replace(attack(), measurements=found)), max_regression=0.05)
    assert verdict.outcome == "INCONCLUSIVE" and "cannot be compared" in verdict.rules[0].reason


def test_a_comparison_is_judged_on_the_defended_model():
    two = sample.comparison(
        before=report(attack("ppa", 0.8, 0.9, 1.0)), after=report(attack("ppa", 0.0, 0.01, 0.02)), changes=()
    )
    assert outcome(two, "attack_acc1 > 0.1") == "PASS"
    assert outcome(two, "attack_acc1 - baseline.attack_acc1 < -0.9") == "INCONCLUSIVE"  # in [-1, -0.78]


def test_the_twin_is_compared_by_the_paired_interval():
    change = sample.change("ppa", "attack_acc1", (0.9, 0.01), 0.01, "less leakage")  # in [-0.9, -0.88]
    two = sample.comparison(
        before=report(attack("ppa", 0.8, 0.9, 1.0)), after=report(attack("ppa", 0.0, 0.01, 0.02)), changes=(change,)
    )
    assert outcome(two, "attack_acc1 - baseline.attack_acc1 < -0.87") == "FAIL"
    assert outcome(two, "attack_acc1 - baseline.attack_acc1 > -0.87") == "PASS"
    assert outcome(two, "attack_acc1 - baseline.attack_acc1 > -0.87", two.before) == "INCONCLUSIVE"


def test_without_interval_only_an_exact_value_decides():
    exact = attack(low=None, value=0.3, high=None)
    exact = replace(exact, measurements=(measurement("attack_acc1", None, 0.3, None, reason="exact: all classes"),))
    exact = replace(exact, measurements=(*exact.measurements, measurement("target_acceptance", 0.9, 1.0, 1.0)))
    assert outcome(report(exact), "attack_acc1 > 0.1") == "FAIL"
    assert outcome(report(exact), "attack_acc1 > 0.3") == "PASS"
    vague = replace(exact, measurements=(measurement("attack_acc1", None, 0.3, None, reason="one class only"),))
    verdict = judge(report(vague), [RulePlan(id="r", when="attack_acc1 > 0.1")])
    assert verdict.outcome == "INCONCLUSIVE" and "one class only" in verdict.rules[0].reason


def test_what_was_not_measured_is_inconclusive():
    assert outcome(report(attack()), "fid_evaluator < 10") == "INCONCLUSIVE"
    assert outcome(report(attack()), "attack_acc1[ppa] > 0.1") == "INCONCLUSIVE"
    assert outcome(report(attack()), "attack_acc1 - control.attack_acc1 > 0.1") == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"attacks": (attack(accepted=0.89),)}, "did not optimise"),
        ({"attacks": (attack(failed=("gmi-s0: out of memory",)),)}, "1 jobs failed"),
        ({"attacks": (attack(flags=("ZERO_GRADIENT: no signal",)),)}, "ZERO_GRADIENT"),
        ({"attacks": (attack(),), "evaluator": sample.model(0.61)}, "half-way"),  # 5 classes: needs more than 0.6
    ],
)
def test_weak_evidence_never_passes_and_still_fails(facts, why):
    result = sample.audit(**facts)
    passing = judge(result, [RulePlan(id="r", when="attack_acc1 > 0.5")])
    assert passing.outcome == "INCONCLUSIVE"
    assert why in passing.rules[0].reason and why in passing.reasons[0]
    assert outcome(result, "attack_acc1 > 0.1") == "FAIL"


def test_sanity_holds_at_its_edges():
    assert sanity(report(attack(accepted=0.90), evaluator=sample.model(0.63))) == ()  # low end 0.61 > (1 + 1/5) / 2


def test_model_accuracy_is_gated_without_the_attacks():
    broken = report(attack(accepted=0.1))
    assert outcome(broken, "accuracy < 0.9") == "PASS"
    assert outcome(broken, "accuracy < 1.1") == "FAIL"


def test_the_worst_rule_is_the_verdict():
    rules = [RulePlan(id=str(limit), when=f"attack_acc1 > {limit}") for limit in (0.5, 0.3, 0.1)]
    assert judge(report(attack()), rules[:1]).outcome == "PASS"
    assert judge(report(attack()), rules[:2]).outcome == "INCONCLUSIVE"
    assert judge(report(attack()), rules).outcome == "FAIL"


def test_nothing_gated_and_nothing_attacked():
    assert judge(report(attack()), ()) is None
    with pytest.raises(NothingToAudit):
        judge(report(floor()), [RulePlan(id="r", when="attack_acc1 > 0.1")])


def test_unknown_metric_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'attack_acc1'"):
        judge(report(attack()), [RulePlan(id="r", when="atack_acc1 > 0.1")])


@pytest.mark.parametrize(
    "when",
    [
        "", "attack_acc1", "attack_acc1 == 0.1", "0.1 < attack_acc1 < 0.2", "1 > 0", "attack_acc1 > 0.1 and fid < 3",
        "__import__('os').system('true') > 0", "attack_acc1 * 2 > 1", "other.attack_acc1 > 1", "attack_acc1 > 1e999",
        "attack_acc1 > True", "(lambda: 1)() < attack_acc1", "attack_acc1 > 0.1\x00", "a" * 400,
        "(" * 100 + "attack_acc1 > 1", "attack_acc1[] > 1", "baseline.control.attack_acc1 > 1",
    ],
)  # fmt: skip
def test_anything_but_one_comparison_is_refused(when):
    with pytest.raises(ConfigError, match="gate rule"):
        parse(when)


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text):
    with contextlib.suppress(ConfigError):
        parse(text)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted), st.floats(0, 1))
def test_no_value_both_fails_and_passes(ends, limit):
    result = report(attack(low=ends[0], value=ends[1], high=ends[2]))
    above, below = outcome(result, f"attack_acc1 > {limit!r}"), outcome(result, f"attack_acc1 <= {limit!r}")
    assert {above, below} in ({"FAIL", "PASS"}, {"INCONCLUSIVE"})


def test_exit_codes():
    verdicts = {name: replace(sample.failing(), outcome=name) for name in ("PASS", "FAIL", "INCONCLUSIVE")}
    assert [exit_code(verdicts[name], 0) for name in verdicts] == [0, 1, 5]
    assert [exit_code(verdicts[name], 0, exit_zero=True) for name in verdicts] == [0, 0, 0]
    assert exit_code(None, 0) == 0
    assert [exit_code(verdict, 2, exit_zero=True) for verdict in (*verdicts.values(), None)] == [4, 4, 4, 4]


def test_failed_jobs_of_both_sides_count():
    failing = report(attack(failed=("one", "two")))
    assert failed_jobs(sample.comparison(before=failing, after=failing)) == ("one", "two", "one", "two")


def test_gate_needs_neither_torch_nor_numpy():
    code = (
        "import sys, mi_audit.audit.gate, mi_audit.store.results; "
        "print({'torch', 'numpy', 'scipy', 'jinja2', 'matplotlib', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_rule_about_every_attack_keeps_what_became_of_each():
    two = report(attack(low=0.0, value=0.02, high=0.05), attack("ppa", 0.6, 0.7, 0.8))
    (rule,) = judge(two, [RulePlan(id="r", when="attack_acc1 > 0.1")]).rules
    assert [(part.attack, part.outcome) for part in rule.attacks] == [("gmi", "PASS"), ("ppa", "FAIL")]
    (rule,) = judge(two, [RulePlan(id="r", when="attack_acc1[ppa] > 0.1")]).rules
    assert rule.attacks == ()


def test_weak_evidence_passes_no_attack_by_itself_either():
    weak = report(attack(accepted=0.1, low=0.0, value=0.02, high=0.05), attack("ppa", 0.6, 0.7, 0.8))
    (rule,) = judge(weak, [RulePlan(id="r", when="attack_acc1 > 0.1")]).rules
    assert [(part.attack, part.outcome) for part in rule.attacks] == [("gmi", "INCONCLUSIVE"), ("ppa", "FAIL")]
