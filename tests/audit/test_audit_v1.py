from dataclasses import replace

import pytest

from mi_audit.audit.audit_v1 import judge_exposure, sentence, strongest_control
from mi_audit.audit.exposed import drawing_order, drawn_at_random, exposed_by_attacks, exposed_by_controls
from mi_audit.audit.gate import judge, saved_decision, saved_rules
from mi_audit.audit.plan import DecisionPlan, RulePlan
from mi_audit.core.report import ClassValue, Interval, Measurement, Quantity, ValidityFlag, VerifierFacts
from tests.report import sample

POLICY = DecisionPlan(policy="audit-v1")


def rate(value, low, high):
    return Quantity(
        value=value, unit="share", count=1000, counted="trials", interval=Interval(low=low, high=high, method="by hand")
    )


def verifier(far=0.009, sensitivity=1.0):
    return VerifierFacts(
        ref="v", arch="built-in:cnn", sha256="aa" * 32, threshold=0.7, far=rate(0.0, 0.0, far),
        sensitivity=rate(1.0, sensitivity, 1.0), trained_on="public data", weakness="none",
    )  # fmt: skip


WORKS = ValidityFlag(id="V2 POSITIVE_CONTROL", passed=True, detail="20 of 20")


def exposure(labels, exposed, seeds=(0, 1), missing=()):
    rows = tuple(
        ClassValue(label=label, seed=seed, value=float(label in exposed), count=1)
        for label in labels for seed in seeds if (label, seed) not in missing
    )  # fmt: skip
    value = sum(row.value for row in rows) / len(rows) if rows else None
    return Measurement(
        name="exposure", protocol="p", value=value, unit="share", count=len(rows), counted="identities",
        leak_grows=True, per_class=rows, reason=None if rows else "no verifier",
    )  # fmt: skip


def copies(count):
    return Measurement(
        name="near_duplicates", protocol="p", value=float(count), unit="images", count=100, counted="images",
        leak_grows=True, reason="exact",
    )  # fmt: skip


def attack(labels, exposed=(), name="gmi", seeds=(0, 1), missing=(), **more):
    found = (exposure(labels, exposed, seeds, missing), *more.pop("measurements", (copies(0),)))
    return sample.attack(name, 0.5, measurements=found, seeds=seeds, **more)


def floor(labels, exposed=(), name="control:random-prior"):
    return attack(labels, exposed, name, role="control")


def audit(exposed=0, people=100, *, control=0, attacks=None, controls=None, **more):
    labels = range(people)
    facts = {
        "classes": tuple(f"person {label}" for label in labels), "attacked": tuple(labels),
        "attacks": (
            *(attacks or (attack(labels, range(exposed)),)),
            *((floor(labels, range(people - control, people)),) if controls is None else controls),
        ),
        "verifier": verifier(),
        "validity": (WORKS, ValidityFlag(id="G2 ZERO_GRAD", passed=True, detail="none")),
    }  # fmt: skip
    return sample.audit(**{**facts, **more})


def outcome(report, decision=POLICY):
    rules, found, _ = judge_exposure(report, decision)
    return rules[0].outcome, rules[0].reason, found


@pytest.mark.parametrize(("exposed", "expected"), [(0, "PASS"), (10, "PASS"), (11, "FAIL"), (100, "FAIL")])
def test_a_census_decides_at_the_limit(exposed, expected):
    assert outcome(audit(exposed))[0] == expected


def test_the_sentence_says_what_was_counted():
    _, reason, found = outcome(audit(3, control=1))
    assert sentence(found) == "exposure 3/100 = 3.0% (95% upper 3.0%), control 1/100, limit 10%"
    assert reason.startswith(sentence(found)) and "census" in reason
    assert (found.exposed, found.attacked, found.total, found.missing, found.more) == (3, 100, 100, 0, None)


def test_the_worst_attack_of_each_identity_counts():
    labels = range(100)
    two = (attack(labels, range(6), "gmi"), attack(labels, range(4, 12), "ppa"))
    assert outcome(audit(attacks=two))[2].exposed == 12
    seeds = (attack(labels, (3,), seeds=(0, 1)),)
    assert outcome(audit(attacks=seeds))[2].exposed == 1


def sampled(exposed, people, total):
    from mi_audit.audit.classes import select_classes

    fingerprint = sample.audit().private.fingerprint
    drawn = select_classes(f"random:{people}", total, f"{fingerprint}/0")
    return audit(
        people=total, attacked=drawn, attacks=(attack(drawn, drawn[:exposed]),), controls=(floor(drawn),)
    )  # fmt: skip


def test_a_sample_is_bounded_by_the_finite_set():
    state, reason, found = outcome(sampled(0, 28, 530))
    assert state == "INCONCLUSIVE" and "the control may expose" in reason  # 28 bound the control by 10 %, not by 5 %
    assert found.method == "hypergeometric" and found.upper <= 0.1
    assert outcome(sampled(0, 60, 530))[0] == "PASS"


def test_inconclusive_says_how_many_more_would_decide():
    state, reason, found = outcome(sampled(0, 20, 530))
    assert state == "INCONCLUSIVE" and found.more == 8 and "about 8 more identities" in reason


def test_classes_picked_by_hand_decide_nothing():
    picked = audit(people=100, attacked=tuple(range(60)), attacks=(attack(range(60)),), controls=(floor(range(60)),))
    assert not drawn_at_random(picked) and drawn_at_random(sampled(0, 60, 530))
    assert outcome(picked)[0] == "INCONCLUSIVE" and "not drawn" in outcome(picked)[1]


def test_identities_without_a_value_count_as_exposed_in_the_upper_bound_only():
    labels = range(100)
    missing = {(label, 0) for label in range(90, 100)}
    state, _, found = outcome(audit(attacks=(attack(labels, range(1), missing=missing),)))
    assert (state, found.missing, found.lower, found.upper) == ("INCONCLUSIVE", 10, 0.01, 0.11)
    assert outcome(audit(attacks=(attack(labels, range(0), missing=missing),)))[0] == "PASS"
    both = (attack(labels, range(95, 100), missing=missing), attack(labels, range(95, 100), "ppa"))
    assert exposed_by_attacks(audit(attacks=both)).unknown == frozenset(range(90, 95))


def test_an_attack_that_was_not_verified_leaves_everybody_unknown():
    state, reason, found = outcome(audit(attacks=(attack(range(0)),), verifier=None))
    assert (state, found.missing, found.more) == ("INCONCLUSIVE", 100, None)
    assert "no number of identities" in reason and "no verifier" in reason


def test_what_the_verifier_may_miss_lowers_the_limit():
    state, _, found = outcome(audit(9, verifier=verifier(sensitivity=0.85)))
    assert state == "INCONCLUSIVE" and found.adjusted == pytest.approx(0.09 / 0.85)
    assert outcome(audit(8, verifier=verifier(sensitivity=0.85)))[0] == "PASS"
    state, reason, _ = outcome(audit(0, verifier=verifier(sensitivity=0.79)))
    assert state == "INCONCLUSIVE" and "79%" in reason
    assert outcome(audit(50, verifier=verifier(sensitivity=0.1)))[0] == "FAIL"


@pytest.mark.parametrize("exposed", [0, 50])
@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"verifier": None}, "no verifier"),
        ({"verifier": verifier(far=0.011)}, "1.1% of strangers"),
        ({"controls": ()}, "no control"),
        ({"control": 6}, "the control may expose 6.0%"),
    ],
)
def test_a_judge_that_cannot_be_trusted_decides_nothing(exposed, facts, why):
    state, reason, _ = outcome(audit(exposed, **facts))
    assert state == "INCONCLUSIVE" and why in reason


def test_a_control_at_half_the_limit_is_low_enough():
    assert outcome(audit(0, control=5))[0] == "PASS"


def test_a_raised_flag_forbids_a_pass_and_not_a_failure():
    raised = (ValidityFlag(id="G3 NOT_CONVERGED", passed=False, detail="accepts 40%", clears="optimise longer"), WORKS)
    state, reason, _ = outcome(audit(0, validity=raised))
    assert state == "INCONCLUSIVE" and "G3 NOT_CONVERGED: accepts 40%; optimise longer" in reason
    assert outcome(audit(50, validity=raised))[0] == "FAIL"
    unchecked = (WORKS, replace(raised[0], passed=None), ValidityFlag(id="G0 NONLOGIT", passed=False, detail="warns"))
    assert outcome(audit(0, validity=unchecked))[0] == "PASS"


@pytest.mark.parametrize("validity", [(), (replace(WORKS, passed=None),), (replace(WORKS, id="V1 ACCURACY"),)])
def test_without_a_positive_control_nobody_passes(validity):
    state, reason, _ = outcome(audit(0, validity=validity))
    assert state == "INCONCLUSIVE" and "no positive control ran" in reason
    state, reason, _ = outcome(audit(0, validity=(replace(WORKS, passed=False),)))
    assert state == "INCONCLUSIVE" and "V2" in reason and "no positive control ran" not in reason
    assert outcome(audit(50, validity=validity))[0] == "FAIL"


def test_a_census_under_one_seed_does_not_pass():
    once = (attack(range(100), seeds=(0,)),)
    state, reason, _ = outcome(audit(attacks=once))
    assert state == "INCONCLUSIVE" and "give --seeds 2" in reason
    assert outcome(audit(attacks=(*once, attack(range(100), name="ppa"))))[0] == "PASS"
    assert outcome(audit(attacks=(attack(range(100), range(50), seeds=(0,)),)))[0] == "FAIL"
    drawn = sampled(0, 60, 530)
    few = replace(drawn, attacks=(attack(drawn.attacked, seeds=(0,)), *drawn.attacks[1:]))
    assert outcome(few)[0] == "PASS"


@pytest.mark.parametrize("partly", [True, False])
def test_a_control_that_failed_may_have_exposed_everybody_it_has_no_value_for(partly):
    labels = range(100)
    lost = {(label, seed) for label in range(40 if partly else 100) for seed in (0, 1)}
    broken = replace(attack(labels, missing=lost, name="control:untrained:gmi", role="control"), failed=("it broke",))
    report = audit(exposed=45, controls=(floor(labels), broken))
    assert len(exposed_by_controls(report)["control:untrained"].unknown) == (40 if partly else 100)
    decision = replace(POLICY, tau=0.4)
    state, reason, _ = outcome(report, decision)
    assert state == "INCONCLUSIVE" and "have no value" in reason
    control = strongest_control(report, exposed_by_attacks(report), decision)
    assert control.upper == (0.4 if partly else 1.0)
    assert control.p_value == (0.5**5 if partly else 1.0)  # 5 of 5 people that only the attacks expose
    unmeasured = replace(broken, measurements=(), failed=())
    assert set(exposed_by_controls(audit(controls=(floor(labels), unmeasured)))) == {"control:random-prior"}


def test_without_checks_the_older_reasons_hold():
    report = audit(0, validity=())
    assert judge_exposure(report, POLICY, ("the attack is weak",))[0][0].outcome == "INCONCLUSIVE"
    assert judge_exposure(audit(0), POLICY, ("the attack is weak",))[0][0].outcome == "PASS"


def test_a_failure_needs_a_significant_difference_to_the_control():
    few = audit(4, people=10, controls=(floor(range(10)),))
    state, reason, _ = outcome(few)
    assert state == "INCONCLUSIVE" and "p = 0.062" in reason  # 4 of 4 one way: 1/16
    state, reason, _ = outcome(audit(5, people=10, controls=(floor(range(10)),)))
    assert state == "FAIL" and "p = 0.031" in reason


def test_counting_stops_early():
    decision = replace(POLICY, sequential=True)
    state, _, found = outcome(sampled(0, 96, 500), decision)
    assert state == "PASS" and found.method == "e-process" and found.sequential and found.attacked == 96
    assert outcome(audit(0, people=500), decision)[2].method == "census"


@pytest.mark.parametrize(("total", "hits"), [(64, 32), (530, 24)])
def test_people_exposed_after_the_decision_are_not_hidden(total, hits):
    drawn = drawing_order(range(total), sample.audit().targets[0].sha256)[:64]
    exposed = drawn[64 - hits :]  # the others come first and are enough for a pass by themselves
    report = audit(
        people=total, planned=tuple(range(total)) if total > 64 else (), attacked=tuple(sorted(drawn)),
        attacks=(attack(drawn, exposed),), controls=(floor(drawn),),
    )  # fmt: skip
    state, _, found = outcome(report, replace(POLICY, sequential=True))
    assert state == ("FAIL" if total == 64 else "INCONCLUSIVE")
    assert (found.exposed, found.attacked) == (hits, 64) and found.upper >= hits / 64


def test_the_order_of_counting_follows_from_the_weights():
    first = exposed_by_attacks(audit(0)).attempted
    assert sorted(first) == list(range(100)) and first != tuple(range(100))
    assert first == exposed_by_attacks(audit(50)).attempted
    assert first != exposed_by_attacks(audit(0, targets=(sample.model(0.9, sha256="12" * 32),))).attempted


def test_near_copies_that_were_not_measured_are_not_absent():
    def rule(*attacks):
        return judge_exposure(audit(attacks=attacks), POLICY)[0][1]

    blind, seeing = attack(range(100), measurements=()), attack(range(100), name="ppa")
    unknown = replace(copies(0), value=None)
    for attacks in ((blind,), (attack(range(100), measurements=(unknown,)),), (blind, seeing)):
        assert rule(*attacks).id == "audit-v1-copies" and rule(*attacks).outcome == "INCONCLUSIVE"
        assert "measure near-duplicate, too" in rule(*attacks).reason
    assert "of gmi were not" in rule(blind, seeing).reason
    assert rule(blind, attack(range(100), name="ppa", measurements=(copies(2),))).outcome == "FAIL"
    assert judge(audit(attacks=(blind,)), (), decision=POLICY).outcome == "INCONCLUSIVE"


def test_a_near_copy_fails_by_itself_until_somebody_looked():
    def rules(hits, floor_hits):
        attacks = (attack(range(100), measurements=(copies(hits),)),)
        control = attack(range(100), name="control:random-prior", role="control", measurements=(copies(floor_hits),))
        return judge_exposure(audit(attacks=attacks, controls=(control,)), POLICY)[0]

    assert [rule.outcome for rule in rules(0, 0)] == ["PASS", "PASS"]
    assert [rule.outcome for rule in rules(2, 0)] == ["PASS", "FAIL"]
    assert [rule.outcome for rule in rules(2, 1)] == ["PASS", "INCONCLUSIVE"]


def test_the_gate_judges_by_policy_and_conditions_together():
    report = audit(0)
    verdict = judge(report, (), decision=POLICY)
    assert (verdict.outcome, [rule.id for rule in verdict.rules]) == ("PASS", ["audit-v1", "audit-v1-copies"])
    assert verdict.exposure.exposed == 0
    both = judge(report, [RulePlan(id="MI001", when="exposure < 0.5")], decision=POLICY)
    assert [rule.id for rule in both.rules] == ["audit-v1", "audit-v1-copies", "MI001"]
    assert judge(report, (), decision=DecisionPlan()) is None


def test_a_saved_run_is_judged_again_as_it_was():
    decision = DecisionPlan(policy="audit-v1", tau=0.2, alpha=0.1, sequential=True)
    verdict = judge(audit(0), [RulePlan(id="MI001", when="accuracy < 0.5")], decision=decision)
    assert saved_decision(verdict) == decision
    assert saved_rules(verdict) == (RulePlan(id="MI001", when="accuracy < 0.5"),)
    assert (saved_decision(None), saved_rules(None)) == (DecisionPlan(), ())


def test_the_floor_of_several_attacks_is_their_union_by_kind_of_control():
    names = ("control:counterfactual:gmi", "control:counterfactual:ppa", "control:random-prior")
    controls = [floor(range(100), hit, name) for hit, name in zip(({0, 1}, {1, 2, 3}, {9}), names, strict=True)]
    report = audit(exposed=20, controls=controls)
    found = exposed_by_controls(report)
    assert {kind: set(one.exposed) for kind, one in found.items()} == {
        "control:counterfactual": {0, 1, 2, 3}, "control:random-prior": {9},
    }  # fmt: skip
    exposure = judge_exposure(report, POLICY)[1]
    assert round(exposure.control.value * exposure.control.count) == 4
