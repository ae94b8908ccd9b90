"""What a run that asks for bfloat16 does and says, from its plan to its result."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mi_audit.audit.attack import run_attack
from mi_audit.audit.jobs import Job, JobResult
from mi_audit.audit.measure import precision_of
from mi_audit.core.arithmetic import Decision
from mi_audit.core.report import PrecisionFacts
from mi_audit.nn import mixed_precision
from mi_audit.store.runs import RunFolder
from tests.world import digit_plan


def content(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in [*sorted(out.glob("jobs/*")), out / "result.json"]}


def decisions(out: Path) -> list[object]:
    with RunFolder(out) as folder:
        return [folder.read_job(file.stem)[1]["precision"] for file in sorted(out.glob("jobs/*"))]


@pytest.fixture(scope="module")
def plans(digits: Path, cache: Path, tmp_path_factory):
    def plan(name: str, precision: str, **changes: object):
        whole = digit_plan(digits, tmp_path_factory.mktemp("precision") / name, cache)
        return replace(whole, seeds=1, metrics=("attack-accuracy",), precision=precision, **changes)

    return plan


@pytest.fixture(scope="module")
def half(plans):
    plan = plans("half", "bf16")
    return plan, run_attack(plan)


def test_the_result_says_what_every_stage_computed_in(half):
    plan, report = half
    facts = {attack.name: attack.precision for attack in report.attacks}
    assert [one.stage for one in facts["gmi"]] == ["descend"]
    assert [one.stage for one in facts["ppa"]] == ["pool", "optimise"]
    assert all(one.searches == 2 for name in ("gmi", "ppa") for one in facts[name])  # one per job
    assert facts["control:random-prior"] == ()
    saved = json.loads((plan.out / "result.json").read_text())
    written = next(attack for attack in saved["attacks"] if attack["name"] == "ppa")["precision"]
    assert [one["stage"] for one in written] == ["pool", "optimise"]


def test_a_resumed_run_decides_the_same(half):
    plan, _ = half
    whole = content(plan.out)
    for name in ("gmi-s0-c0000-*", "ppa-s0-c0003-*"):
        next((plan.out / "jobs").glob(name)).unlink()
    run_attack(plan)
    assert content(plan.out) == whole


def test_another_batch_size_decides_the_same_in_the_same_job(half, plans):
    plan, _ = half
    other = plans("single", "bf16", batch_size=1)
    run_attack(other)
    assert decisions(other.out) == decisions(plan.out)
    assert {file.name for file in other.out.glob("jobs/*")} == {file.name for file in plan.out.glob("jobs/*")}


def test_jobs_are_those_of_their_precision_and_auto_attacks_exactly(half, plans):
    plan, _ = half
    names = {}
    for precision in ("32", "auto"):
        one = plans(f"run-{precision}", precision)
        report = run_attack(one)
        assert all(attack.precision == () for attack in report.attacks)
        assert not any(decisions(one.out))
        names[precision] = {file.name for file in one.out.glob("jobs/*")}
    assert names["32"] == names["auto"] and not names["32"] & {file.name for file in plan.out.glob("jobs/*")}


def refused(name: str, *facts: Decision) -> JobResult:
    as_saved = [{field: getattr(one, field) for field in Decision.__slots__} for one in facts]
    return JobResult(Job(name, (0,), 0, name), {}, {"precision": as_saved})


def test_decisions_of_all_jobs_are_summed_up_stage_by_stage():
    low = f"the median cosine between both is 0.63, below {mixed_precision.LEAST}"
    results = [
        refused("a", Decision("pool", "bf16", "bf16", 0.99), Decision("climb", "bf16", "32", 0.63, low)),
        refused("b", Decision("pool", "bf16", "bf16", 0.97), Decision("climb", "bf16", "32", 0.63, low)),
        refused("c", Decision("climb", "bf16", "32", None, "not all numbers are finite")),
        JobResult(Job("old", (0,), 0, "old"), {}, {}),
    ]
    assert precision_of(results) == (
        PrecisionFacts(stage="pool", searches=2, mixed=2, cosine=(0.97, 0.99)),
        PrecisionFacts(
            stage="climb", searches=3, mixed=0, cosine=(0.63, 0.63), reasons=(low, "not all numbers are finite")
        ),
    )
