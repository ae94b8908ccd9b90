from dataclasses import replace

import pytest
import torch

from mi_audit.audit import positive
from mi_audit.audit.audit_v1 import judge_exposure
from mi_audit.audit.control import with_leakage
from mi_audit.audit.exposed import exposed_by_attacks, exposed_by_controls
from mi_audit.audit.gate import judge
from mi_audit.audit.plan import DecisionPlan, ModelPlan, Plan, RulePlan
from mi_audit.audit.progress import Silent
from mi_audit.audit.scene import open_scene
from mi_audit.core.errors import ConfigError
from mi_audit.core.quantity import ClassValue, Measurement
from mi_audit.core.report import ValidityFlag
from mi_audit.report import trust, wording
from tests.audit import test_gate
from tests.audit.test_audit_v1 import POLICY, WORKS, attack, audit, floor, outcome
from tests.report import sample
from tests.world import digit_plan


def measured(name: str, values: dict[int, float], seed: int = 0) -> Measurement:
    rows = tuple(ClassValue(label=label, seed=seed, value=value, count=1) for label, value in values.items())
    return Measurement(
        name=name, protocol=name, value=sum(values.values()) / max(1, len(values)), unit="share", count=len(values),
        counted="identities", reason="-", leak_grows=True, per_class=rows,
    )  # fmt: skip


def leaky(name: str = "gmi", *found: Measurement, **more: object):
    return sample.attack(f"control:positive:{name}", 0.5, role="control", measurements=found, **more)


def exposing(exposed: int, people: int, name: str = "gmi"):
    return leaky(name, measured("exposure", {label: float(label < exposed) for label in range(people)}))


@pytest.mark.parametrize(
    ("exposed", "people", "passed"),
    [(15, 20, True), (14, 20, False), (20, 30, True), (19, 30, False), (5, 5, True), (4, 4, False), (0, 9, False)],
)  # the first two pairs are those of the specification; 0.05 ** (1 / 5) = 0.549, 0.05 ** (1 / 4) = 0.473
def test_the_suite_works_when_half_of_the_people_are_broken_for_sure(exposed, people, passed):
    flag = positive.suite_works([exposing(exposed, people)], range(people))
    assert flag.id == "V2 POSITIVE_CONTROL" and flag.passed is passed
    assert f"{exposed} of {people} people to the verifier" in flag.detail
    assert (flag.clears == "") is passed
    assert ("at least 5 people" in flag.clears) is (people < 5)


def test_the_attacks_are_judged_together_and_any_seed_counts():
    odd = leaky("gmi", measured("exposure", {label: float(label % 2) for label in range(10)}))
    even = leaky("ppa", measured("exposure", {label: float(label % 2 == 0) for label in range(10)}, seed=1))
    assert positive.suite_works([odd, even], range(10)).passed is True
    assert positive.suite_works([odd], range(10)).passed is False


def test_people_without_a_value_are_not_broken():
    seen = leaky("gmi", measured("exposure", dict.fromkeys(range(12), 1.0)))
    assert positive.suite_works([seen], range(12)).passed is True
    assert positive.suite_works([seen], range(24)).passed is False


def test_without_a_verifier_the_evaluator_has_to_recognise_half_of_somebodys_pictures():
    unverified = replace(measured("exposure", {}), value=None)
    good, bad = ({label: share for label in range(6)} for share in (0.5, 0.4))
    flag = positive.suite_works([leaky("gmi", unverified, measured("attack_acc1", good))], range(6))
    assert flag.passed is True and "6 of 6 people to the evaluator" in flag.detail
    assert positive.suite_works([leaky("gmi", unverified, measured("attack_acc1", bad))], range(6)).passed is False


def test_the_evaluator_has_no_say_where_a_verifier_looked():
    found = leaky("gmi", measured("exposure", dict.fromkeys(range(6), 0.0)), measured("attack_acc1", {0: 1.0}))
    assert "0 of 6 people to the verifier" in positive.suite_works([found], range(6)).detail


def test_what_did_not_run_is_not_checked_and_what_broke_down_fails():
    assert positive.suite_works([], range(6)).passed is None
    assert positive.suite_works([leaky("gmi", measured("fid", {}))], range(6)).passed is None
    assert positive.suite_works([leaky("gmi", failed=("it broke",))], range(6)).passed is False


@pytest.mark.parametrize(
    ("profile", "asked", "wanted"),
    [("quick", None, False), ("thorough", None, True), ("thorough", False, False), ("quick", True, True)],
)
def test_it_runs_on_request_and_under_the_profile_thorough(profile, asked, wanted):
    assert positive.is_wanted(Plan(model=ModelPlan(ref="m"), profile=profile, positive_control=asked)) is wanted


def test_the_policy_that_needs_it_runs_it():
    plan = Plan(model=ModelPlan(ref="m"), profile="quick", decision=POLICY)
    assert positive.is_wanted(plan)
    assert not positive.is_wanted(replace(plan, positive_control=False))


def test_it_is_no_floor_of_anything():
    labels = range(100)
    broken = attack(labels, labels, "control:positive:gmi", role="control")
    copies = measured("near_duplicates", {0: 1.0})
    broken = replace(broken, measurements=(broken.measurements[0], copies, measured("attack_acc1", {0: 1.0})))
    ours = attack(labels, measurements=(copies,))
    report = audit(attacks=(ours,), controls=(floor(labels), broken))
    assert outcome(report)[0] == outcome(audit(attacks=(ours,)))[0] == "PASS"
    assert outcome(report)[1:] == outcome(audit(attacks=(ours,)))[1:]
    assert [rule.outcome for rule in judge_exposure(report, POLICY)[0]] == ["PASS", "FAIL"]  # not: a control has some
    assert set(exposed_by_controls(report)) == {"control:random-prior"}
    assert not exposed_by_attacks(report).exposed
    assert [one.protocol.partition("-over-")[2] for one in with_leakage(report.attacks)[0].over_control] == [
        "control:random-prior"
    ]
    only = replace(report, attacks=(ours, broken))
    assert "no control measured exposure" in outcome(only)[1]
    assert wording.control_for(only, ours) is None
    rule = RulePlan(id="r", when="control.exposure > 0.5")
    assert "no control measured it" in judge(only, [rule]).rules[0].reason


def test_it_is_shown_among_the_controls():
    report = audit(attacks=(attack(range(9)),), controls=(exposing(9, 9),))
    (row,) = trust.controls(report).rows
    assert row.title == "control: positive (gmi)" and "leaks on purpose" in row.isolates


@pytest.mark.parametrize("check", ["V1 ACCURACY", "V2 POSITIVE_CONTROL"])
def test_a_suite_that_breaks_nothing_or_another_model_than_declared_passes_nobody(check):
    def judged(passed: bool | None, exposed: int, decision: DecisionPlan | None, *rules: RulePlan):
        flag = ValidityFlag(id=check, passed=passed, detail="5 of 20", clears="more steps")
        ours = attack(range(100), range(exposed))
        rated = test_gate.attack().measurements  # attack_acc1 is 0.3 [0.2, 0.4]
        ours = replace(ours, measurements=(*ours.measurements, *rated))
        works = () if check == WORKS.id else (WORKS,)
        return judge(audit(attacks=(ours,), validity=(flag, *works)), rules, decision=decision)

    below, above = (RulePlan(id="r", when=f"attack_acc1 > {limit}") for limit in (0.5, 0.1))
    for passed in (True, None):
        assert judged(passed, 0, None, below).outcome == "PASS"
        needed = passed is None and check == WORKS.id  # by the policy, not by a condition
        assert judged(passed, 0, POLICY).outcome == ("INCONCLUSIVE" if needed else "PASS")
    assert judged(False, 0, POLICY).outcome == judged(False, 0, None, below).outcome == "INCONCLUSIVE"
    assert judged(False, 0, POLICY, below).reasons == (f"{check}: 5 of 20; more steps",)  # said once
    assert judged(False, 100, POLICY).outcome == judged(False, 0, None, above).outcome == "FAIL"  # a leak is a leak


def test_the_leaky_model_knows_its_classes_by_training_pictures(digits, cache, tmp_path):
    with open_scene(digit_plan(digits, tmp_path / "run", cache), "attack", Silent()) as scene:
        model, again = positive.leaky_model(scene), positive.leaky_model(scene)
        train, test = scene.splits.train, scene.splits.test
        target = model.target()
        sure = target.scores(train.images()).gather(1, train.labels[:, None]).squeeze(1)
        assert model.sha256 == again.sha256 and model.classifier.num_classes == 5
        assert all(sure[train.labels == label].max() > 0.9 for label in range(5))  # one stored picture of each
        assert (target.labels(test.images()) == test.labels).float().mean() > 0.8
        assert torch.equal(model.target().features(test.images()).argmax(1), target.labels(test.images()))
        bare = replace(scene.splits, train=train.select((train.labels != 2).nonzero().flatten()))
        with pytest.raises(ConfigError, match="got 4 of 5"):
            positive.leaky_model(replace(scene, splits=bare))
