from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from mi_audit.audit.executor import InProcess
from mi_audit.audit.jobs import Job, JobFailure, JobResult, execute
from mi_audit.audit.progress import Silent
from mi_audit.core.errors import ConfigError, Diverged
from mi_audit.store.runs import RunFolder

JOBS = [Job("gmi", (label,), 0, f"{label:064d}") for label in range(3)]


def perform(job: Job, on_step=None) -> tuple[Mapping[str, torch.Tensor], Mapping[str, object]]:
    return {"labels": torch.tensor(job.classes)}, {"seed": job.seed}


def test_every_job_leaves_one_result_and_is_not_run_twice(tmp_path: Path):
    ran = []

    def counted(job: Job, on_step):
        ran.append(job.id)
        return perform(job)

    with RunFolder(tmp_path / "run") as folder:
        first = list(execute(JOBS, counted, folder, Silent(), InProcess()))
        second = list(execute(JOBS, counted, folder, Silent(), InProcess()))
    assert ran == [job.id for job in JOBS]
    assert [int(result.tensors["labels"]) for result in second] == [0, 1, 2]
    assert [result.facts for result in first] == [result.facts for result in second]


def test_forgotten_jobs_are_run_again(tmp_path: Path):
    with RunFolder(tmp_path / "run") as folder:
        list(execute(JOBS, perform, folder, Silent(), InProcess()))
        folder.forget_jobs()
        again = list(
            execute(JOBS, lambda _job, _step: ({"labels": torch.tensor([9])}, {}), folder, Silent(), InProcess())
        )
    assert [int(result.tensors["labels"]) for result in again] == [9, 9, 9]


@pytest.mark.parametrize(
    "error", [Diverged("loss"), RuntimeError("device"), ZeroDivisionError("zero"), MemoryError("full")]
)
def test_a_failing_job_is_reported_and_the_others_go_on(tmp_path: Path, error: Exception):
    def failing(job: Job, on_step):
        if job.classes == (1,):
            raise error
        return perform(job)

    with RunFolder(tmp_path / "run") as folder:
        outcomes = list(execute(JOBS, failing, folder, Silent(), InProcess()))
    assert [type(outcome) for outcome in outcomes] == [JobResult, JobFailure, JobResult]
    assert str(error) in outcomes[1].message


def test_a_wrong_setting_stops_the_run(tmp_path: Path):
    def refusing(job: Job, on_step):
        raise ConfigError("steps")

    with RunFolder(tmp_path / "run") as folder, pytest.raises(ConfigError):
        list(execute(JOBS, refusing, folder, Silent(), InProcess()))


def test_an_interrupt_keeps_what_was_finished(tmp_path: Path):
    def interrupted(job: Job, on_step):
        if job.classes == (2,):
            raise KeyboardInterrupt
        return perform(job)

    with RunFolder(tmp_path / "run") as folder:
        with pytest.raises(KeyboardInterrupt):
            list(execute(JOBS, interrupted, folder, Silent(), InProcess()))
        kept = [folder.read_job(job.name) is not None for job in JOBS]
    assert kept == [True, True, False]


def test_names_differ_whenever_the_ids_do():
    assert JOBS[0].name != Job("gmi", (0,), 0, "f" * 64).name
    assert ":" not in Job("control:random-prior", (0,), 0, "f" * 64).name
