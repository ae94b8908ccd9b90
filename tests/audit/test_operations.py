"""`--deterministic` and `--compile` inside jobs, here and in other processes."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mi_audit.audit import operations
from mi_audit.audit.attack import run_attack
from mi_audit.audit.executor import InProcess, places
from mi_audit.audit.executor_processes import Processes
from mi_audit.audit.fitting import Knowledge
from mi_audit.audit.jobs import Job
from mi_audit.audit.operations import carried_out, marks
from mi_audit.audit.plan import ModelPlan, Plan
from mi_audit.audit.progress import Silent
from mi_audit.audit.runner import Contender, Task
from mi_audit.audit.scene import run_folder_path
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.nn import compiled as module
from mi_audit.nn.compiled import compiled, compiling
from mi_audit.store.results import read_result
from mi_audit.store.targets import new_model
from tests.toy import ToyPrior
from tests.world import digit_plan

PLAN = Plan(model=ModelPlan(ref="m"), private="a", public="b")
JOBS = [Job("gmi", (label,), 0, f"{label:064d}") for label in range(2)]


def seen(target, prior, classes, run) -> Reconstructions:
    """What a job sees of its surroundings."""
    backend = module._backend.get() is not None
    told = [torch.are_deterministic_algorithms_enabled(), backend, run.batch_size]
    return Reconstructions(torch.zeros(3, 1, 32, 32), classes.repeat(3), torch.tensor(told).float())


def refused(target, prior, classes, run) -> Reconstructions:
    return torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))


def opened(target):
    return target


def task(plan: Plan, search=seen) -> Task:
    model = new_model("built-in:cnn", num_classes=5, channels=1, size=32, mean=(0.5,), std=(0.5,), seed=0)
    one = Contender({"name": "gmi", "settings": {}}, 1, search, opened)
    return Task(one, {0: model}, {0: Knowledge(ToyPrior(), "x")}, plan, "cpu", 32)


def told(executor, plan: Plan) -> list[list[float]]:
    return [found.produced[0]["confidence"].tolist() for found in executor.attempts(JOBS, task(plan), Silent())]


def test_jobs_see_what_the_plan_wants_here_and_in_other_processes():
    on = replace(PLAN, deterministic=True, compile="on", batch_size=5)
    with Processes("cpu", places("cpu", 2)) as two:
        for executor in (InProcess(), two):
            assert told(executor, on) == [[1, 1, 5]] * 2
            assert told(executor, replace(PLAN, batch_size=6)) == [[0, 0, 6]] * 2
    assert not torch.are_deterministic_algorithms_enabled() and module._backend.get() is None


def test_an_operation_that_is_refused_fails_its_job_by_name():
    refusing = task(replace(PLAN, deterministic=True), refused)
    messages = [found.message for found in InProcess().attempts(JOBS, refusing, Silent())]
    assert all(text.startswith("expected operations with a deterministic version, got put_;") for text in messages)


def test_ids_of_jobs_know_what_is_on_and_stay_what_they_were_otherwise(monkeypatch):
    assert marks(PLAN, "cpu") == marks(PLAN, "cuda") == marks(replace(PLAN, compile="off"), "cpu") == ()
    assert marks(replace(PLAN, compile="on", deterministic=True), "cpu") == ("compiled", "deterministic")
    assert marks(replace(PLAN, early_stop=True, precision="bf16"), "cpu") == ("polished",)
    assert marks(replace(PLAN, early_stop=True), "cpu") == marks(replace(PLAN, precision="bf16"), "cpu") == ()
    monkeypatch.setattr(module, "PAYS", {"cuda": True})
    assert marks(PLAN, "cuda") == ("compiled",) and marks(PLAN, "cpu") == ()


def test_networks_are_compiled_inside_the_block_only():
    net = torch.nn.Linear(2, 2)
    with carried_out(PLAN, "cpu"):
        assert "forward" not in vars(compiled(net))
    with carried_out(replace(PLAN, compile="on"), "cpu"):
        assert "forward" in vars(compiled(net))


def test_a_run_with_both_gives_the_same_pictures_under_ids_of_its_own(
    digits: Path, cache: Path, tmp_path: Path, monkeypatch, caplog
):
    torch._dynamo.reset()
    monkeypatch.setattr(operations, "compiling", partial(compiling, backend="eager"))
    usual = digit_plan(digits, tmp_path / "plain", cache)
    few = {"attacks": usual.attacks[:1], "controls": ("random",), "metrics": ("attack-accuracy",)}
    plan = replace(usual, seeds=1, classes="0", **few)
    command = "mi-audit attack m --compile on --deterministic"
    both = replace(plan, compile="on", deterministic=True, out=tmp_path / "both", command=command)
    variable = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    run_attack(plan)
    run_attack(both)
    jobs = [{file.name.rpartition("-")[0]: file for file in (one.out / "jobs").iterdir()} for one in (plan, both)]
    assert set(jobs[0]) == set(jobs[1])
    named = [{file.name for file in each.values()} for each in jobs]
    assert not named[0] & named[1]
    first, second = (read_result(one.out) for one in (plan, both))
    assert [one.measurements for one in first.attacks] == [one.measurements for one in second.attacks]
    assert second.command == command
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3  # generator, critic and target
    assert "is not compiled" not in caplog.text
    assert not torch.are_deterministic_algorithms_enabled() and os.environ.get("CUBLAS_WORKSPACE_CONFIG") == variable


@pytest.mark.parametrize("option", [{"compile": "on"}, {"deterministic": True}])
def test_a_run_folder_without_a_name_of_its_own_is_another_one(option):
    assert run_folder_path(replace(PLAN, **option), "attack") != run_folder_path(PLAN, "attack")
    assert run_folder_path(replace(PLAN, batch_size=3), "attack") == run_folder_path(PLAN, "attack")
