from dataclasses import replace

import pytest
import torch

from mi_audit.attacks.gmi import GMI
from mi_audit.attacks.ppa import PPA
from mi_audit.audit.plan import ModelPlan, Plan
from mi_audit.audit.runner import contender, random_control, untrained_control
from mi_audit.audit.savings import Savings, limits, open_to, savings_of, step_facts, taken_facts, without_effect
from mi_audit.audit.scene import ELSEWHERE, ONLY_WHEN_ON, run_folder_path
from mi_audit.audit.settings import plan_to_json
from mi_audit.core.attack import Attack
from mi_audit.core.early_stop import EarlyStop, Taken
from mi_audit.core.prior import Prior
from mi_audit.core.report import StepFacts
from mi_audit.core.run import Run
from mi_audit.core.target import LabelOnlyTarget
from mi_audit.store.files import digest
from tests.toy import ToyPrior, target

PLAN = Plan(model=ModelPlan(ref="face.safetensors"), private="a", public="b")
BOTH = replace(PLAN, early_stop=True, halving=True)
EARLY = {"early_stop_window": 0.05, "early_stop_least": 10, "early_stop_tolerance": 0.01, "early_stop_looks": 2}
HALVING = {"halving": [[10, 50], [30, 25]]}


class Asking(Attack[LabelOnlyTarget, Prior]):
    def run(self, target, prior, classes, run):
        raise NotImplementedError


def test_attacks_take_what_they_have_a_use_for():
    assert [open_to(attack) for attack in (GMI(), PPA(), Asking())] == [
        {"early_stop"}, {"early_stop", "halving"}, frozenset(),
    ]  # fmt: skip
    assert savings_of(PLAN, open_to(PPA())) == Savings()
    assert savings_of(BOTH, open_to(PPA())) == Savings(EarlyStop(), halving=True)
    assert savings_of(BOTH, open_to(GMI())) == Savings(EarlyStop())
    assert savings_of(replace(PLAN, halving=True), open_to(PPA())) == Savings(halving=True)


def test_savings_are_settings_of_attacks_and_of_controls_that_attack():
    attack = PPA()
    for make in (contender, untrained_control):
        one = make("ppa", attack, (0,))
        assert one.saving(PLAN) is one
        assert one.saving(BOTH).facts == {**one.facts, "settings": {**one.facts["settings"], **EARLY, **HALVING}}
    other = random_control("gmi-gan", (0,))
    assert other.saving(BOTH) is other


def test_the_search_gets_the_run_that_saves():
    attack = PPA(**PPA.smoke, flips=False)
    plain, run = Run(), Run()
    one = contender("ppa", attack, (0,))
    one.saving(PLAN).search(target(), ToyPrior(), torch.tensor([1]), plain)
    one.saving(replace(PLAN, early_stop=True)).search(target(), ToyPrior(), torch.tensor([1]), run)
    assert not plain.taken
    assert {(key.stage, key.asked) for key in run.taken} == {("optimise", 30)} and run.taken.total() == 4
    given = Savings(EarlyStop(), halving=True).granted(run)
    assert given.early_stop == EarlyStop() and given.halving and given.taken is run.taken  # one ledger


def test_what_changes_nothing_is_said():
    assert without_effect(BOTH, [PPA(), Asking()]) == without_effect(PLAN, [Asking()]) == ()
    (halving,) = without_effect(BOTH, [GMI()])
    assert halving.startswith("--halving changed nothing")
    assert without_effect(BOTH, [Asking()])[0].startswith("--early-stop changed nothing")


def test_the_result_says_what_it_cannot_tell():
    assert limits(PLAN) == ()
    early, halving = limits(BOTH)
    assert "can look weaker than it is" in early and "--halving" in halving


def test_steps_of_all_jobs_by_stage():
    first = taken_facts({Taken("descend", 100, 30): 2, Taken("descend", 100, 100): 1, Taken("fine", 9, 9, "why"): 3})
    second = taken_facts({Taken("descend", 100, 40): 1})
    assert first[0] == {"stage": "descend", "asked": 100, "taken": 30, "whole": "", "rows": 2}
    assert step_facts([first, second, []]) == (
        StepFacts(stage="descend", asked=100, rows=4, stopped=0.75, mean=50.0, median=35.0),  # 30, 30, 40, 100
        StepFacts(stage="fine", asked=9, rows=3, stopped=0.0, mean=9.0, median=9.0, note="why"),
    )
    assert step_facts([[], []]) == ()


@pytest.mark.parametrize("name", ONLY_WHEN_ON)
def test_a_run_folder_from_before_these_options_is_found(name):
    settings = {key: value for key, value in plan_to_json(PLAN).items() if key not in (*ELSEWHERE, *ONLY_WHEN_ON)}
    assert run_folder_path(PLAN, "attack").name == f"attack-face-{digest('attack', settings)[:8]}"
    assert run_folder_path(replace(PLAN, **{name: True}), "attack") != run_folder_path(PLAN, "attack")
