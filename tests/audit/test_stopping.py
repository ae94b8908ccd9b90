from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mi_audit.audit import attack as audit_attack
from mi_audit.audit import control, defend
from mi_audit.audit.attack import run_attack
from mi_audit.audit.defend import run_defense
from mi_audit.audit.exposed import drawing_order, drawn_at_random
from mi_audit.audit.gate import judge
from mi_audit.audit.plan import AttackPlan, DecisionPlan, Plan, RulePlan
from mi_audit.audit.progress import Silent
from mi_audit.audit.stopping import enough_people, stops_early
from mi_audit.audit.verifier import Verifier
from mi_audit.core.metric import Verification
from mi_audit.store.datasets import load_splits
from tests.audit.test_audit_v1 import attack, audit, floor
from tests.report import sample
from tests.world import SMOKE, defend_plan, digit_plan

SEQUENTIAL = DecisionPlan(policy="audit-v1", tau=0.98, sequential=True)


class Told(Silent):
    def __init__(self):
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def looked(exposed, total=500, control=()):
    """A `look` at audits of a model that knows `total` people, and the numbers of people it was shown."""
    seen = []

    def look(some):
        seen.append(len(some))
        return audit(
            people=total, planned=tuple(range(total)), attacked=tuple(sorted(some)),
            attacks=(attack(some, exposed),), controls=(floor(some, control),),
        )  # fmt: skip

    return look, seen


def order(total=500):
    return drawing_order(range(total), audit().targets[0].sha256)


def test_nobody_is_attacked_after_the_decision():
    decision, progress = replace(SEQUENTIAL, tau=0.1), Told()
    look, seen = looked(exposed=())
    people = enough_people(order(), 32, look, decision, progress)
    # without any exposed one 5 % upper for the control takes 64 to 96 of 500 people, 10 % for the attack fewer
    assert people == order()[: len(people)] and len(people) == seen[-1] == 96
    assert seen == [32, 64, 96]
    assert "96 of 500 people: 0 exposed" in progress.notes[-1] and "404 need no attack" in progress.notes[-1]
    assert "not decided yet" in progress.notes[0]


def test_everybody_leaking_is_seen_at_once():
    look, seen = looked(exposed=range(500))
    people = enough_people(order(), 32, look, replace(SEQUENTIAL, tau=0.3), Silent())
    assert len(people) == 32 and seen == [32]


def test_a_control_that_exposes_as_much_keeps_the_question_open():
    look, seen = looked(exposed=range(500), control=range(500))
    assert enough_people(order(), 200, look, replace(SEQUENTIAL, tau=0.3), Silent()) == order()
    assert seen == [200, 400]


def test_without_a_decision_everybody_is_attacked_and_only_once_in_full():
    look, seen = looked(exposed=range(0, 500, 10))  # one in ten, right at the limit
    assert enough_people(order(), 100, look, replace(SEQUENTIAL, tau=0.1), Silent()) == order()
    assert seen == [100, 200, 300, 400]


def test_only_a_gate_that_looks_stops_early(tmp_path: Path):
    plan = digit_plan("m", tmp_path, tmp_path)
    assert not stops_early(plan)
    assert not stops_early(replace(plan, decision=replace(SEQUENTIAL, policy="rules")))
    assert not stops_early(replace(plan, decision=replace(SEQUENTIAL, sequential=False)))
    assert not stops_early(replace(plan, decision=SEQUENTIAL, metrics=("fid",)))
    assert stops_early(replace(plan, decision=SEQUENTIAL, metrics=("fid", "exposure")))


def test_other_numbers_of_a_run_that_stopped_early_pass_nothing():
    ours = replace(attack(range(100)), measurements=(*attack(range(100)).measurements, *sample.measurements(0.3, 0.99)))
    whole = audit(attacks=(ours,))
    early = replace(whole, planned=tuple(range(200)))
    for when, outcome in (
        ("attack_acc1 > 0.9", "INCONCLUSIVE"),
        ("attack_acc1 > 0.1", "FAIL"),
        ("accuracy < 0.5", "PASS"),
    ):
        rule = RulePlan(id="r", when=when)
        assert judge(whole, [rule]).outcome == ("PASS" if outcome == "INCONCLUSIVE" else outcome)
        verdict = judge(early, [rule])
        assert verdict.outcome == outcome
        assert outcome != "INCONCLUSIVE" or "stopped early on exposure" in verdict.rules[0].reason


def test_the_first_of_the_order_are_drawn_at_random_and_others_are_not():
    report = audit(people=100)
    drawn = tuple(sorted(drawing_order(range(100), report.targets[0].sha256)[:40]))
    assert drawn_at_random(replace(report, planned=report.attacked, attacked=drawn))
    assert not drawn_at_random(replace(report, planned=report.attacked, attacked=tuple(range(40))))
    assert not drawn_at_random(replace(report, attacked=drawn))


@pytest.fixture
def blind_verifier(monkeypatch: pytest.MonkeyPatch):
    """A verifier that recognises nobody, so that the number of people it takes is known."""

    def refuse(pixels, labels):
        return torch.zeros(len(pixels), dtype=torch.bool) & (labels >= 0)

    nobody = Verification("blind", torch.arange(5), refuse, refuse)
    monkeypatch.setattr(audit_attack, "load_verifier", lambda *_: Verifier(None, nobody))


def all_digits(plan: Plan) -> Plan:
    return replace(
        plan, classes="all", seeds=1, attacks=(AttackPlan(name="gmi", settings=SMOKE["gmi"]),), decision=SEQUENTIAL,
        positive_control=False,
    )  # fmt: skip


@pytest.mark.usefixtures("blind_verifier")
def test_a_run_attacks_the_people_it_needs(digits: Path, cache: Path, tmp_path: Path, monkeypatch):
    judged_as: list[dict[int, int]] = []
    measure = control.measure_permuted
    monkeypatch.setattr(
        "mi_audit.audit.measure.measure_permuted", lambda *given: judged_as.append(given[2]) or measure(*given)
    )
    report = run_attack(all_digits(digit_plan(digits, tmp_path / "run", cache)))
    # the control has to stay below half the limit, 49 %: the bound is 69.1 % after 0 of 2, 48.4 % after 0 of 3
    expected = drawing_order(range(5), report.targets[0].sha256)[:3]
    assert report.attacked == tuple(sorted(expected)) and report.planned == (0, 1, 2, 3, 4)
    assert {row.label for row in report.attacks[0].measurement("attack_acc1").per_class} == set(expected)
    assert len(list((tmp_path / "run" / "jobs").glob("gmi-*"))) == 3
    whole = control.derangement(range(5), load_splits("digits:0-4", 32, 1).train.fingerprint)
    assert [len(one) for one in judged_as] == [1, 2, 3, 3]  # the control is the same one at every look
    assert all(one == {label: whole[label] for label in one} for one in judged_as)
    assert report.verdict.exposure.sequential and report.verdict.exposure.total == 5
    assert len(list((tmp_path / "run" / "images" / "gmi" / "s0").glob("*-0.png"))) == 3


@pytest.mark.usefixtures("blind_verifier")
def test_the_twin_is_attacked_on_the_people_that_the_defended_model_needed(cache: Path, tmp_path: Path, monkeypatch):
    asked: list[tuple[int, ...]] = []
    audit_models = defend.audit_models
    monkeypatch.setattr(defend, "audit_models", lambda *given: asked.append(tuple(given[5:])) or audit_models(*given))
    found = run_defense(all_digits(defend_plan(tmp_path / "run", cache)))
    assert found.before.attacked == found.after.attacked and len(found.after.attacked) == 3
    assert found.before.planned == found.after.planned == (0, 1, 2, 3, 4)
    assert drawn_at_random(found.after)
    # in the same order, so that the jobs that do not depend on the model are the same and run once
    assert asked == [(), (drawing_order(range(5), found.after.targets[0].sha256)[:3],)]
