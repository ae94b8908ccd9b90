"""One process per device on the CPU: the same files whatever the number of processes and whatever becomes of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mi_audit.audit.executor import InProcess, attempt, executor_for, places
from mi_audit.audit.executor_processes import Processes
from mi_audit.audit.jobs import Job, JobFailure, JobResult, execute
from mi_audit.audit.progress import Silent
from mi_audit.core.errors import ConfigError, DeviceLost, Diverged
from mi_audit.store.runs import RunFolder

JOBS = [Job("gmi", (label,), 0, f"{label:064d}") for label in range(5)]


class Toy:
    """Work that can be sent: some jobs fail, kill their process, or do so once."""

    def __init__(self, scratch: Path, **faults: int | str):
        self.scratch, self.faults = scratch, faults
        self.weights = torch.arange(4.0)
        self.tied = self.weights[1:]

    def __call__(self, job: Job, on_step):
        (label,) = job.classes
        on_step(f"class {label}", 1, 1)
        with (self.scratch / "seen").open("a") as seen:
            seen.write(f"{label} {os.getpid()} {torch.get_num_threads()}\n")
        if label == self.faults.get("diverges"):
            raise Diverged("expected finite losses")
        if label == self.faults.get("refuses"):
            raise ConfigError("steps")
        if label == self.faults.get("dies") or (label == self.faults.get("dies_once") and self.first("died")):
            os.kill(os.getpid(), signal.SIGKILL)
        if label == self.faults.get("asserts") or (label == self.faults.get("loses") and self.first("lost")):
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with DSA")
        if "seat" in self.faults and os.environ.get("SEAT") == self.faults["seat"]:
            raise RuntimeError("CUDA error: no device")
        if label == self.faults.get("waits"):
            time.sleep(60)
        return {"labels": torch.tensor(job.classes)}, {"tied": self.tied.data_ptr() - self.weights.data_ptr()}

    def first(self, name: str) -> bool:
        file = self.scratch / name
        return not file.exists() and file.write_text("") == 0

    def seen(self) -> list[list[int]]:
        return [[int(word) for word in line.split()] for line in (self.scratch / "seen").read_text().splitlines()]


class Told(Silent):
    def __init__(self):
        self.steps, self.warnings = [], []

    def step(self, label, done, total):
        self.steps.append((label, done, total))

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture(scope="module")
def two():
    with Processes("cpu", places("cpu", 2)) as pool:
        yield pool


def run(pool, toy: Toy, folder: Path, told=None):
    with RunFolder(folder) as kept:
        return list(execute(JOBS, toy, kept, told or Silent(), pool))


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "jobs").iterdir())}


def test_two_processes_share_the_jobs_and_write_what_one_would(tmp_path: Path, two):
    toy, told = Toy(tmp_path), Told()
    run(InProcess(), toy, tmp_path / "one")
    (tmp_path / "seen").unlink()
    outcomes = run(two, toy, tmp_path / "two", told)
    assert content(tmp_path / "two") == content(tmp_path / "one") and len(content(tmp_path / "two")) == 5
    assert [outcome.job for outcome in outcomes] == JOBS and all(isinstance(one, JobResult) for one in outcomes)
    assert os.getpid() not in {pid for _, pid, _ in toy.seen()}
    assert {threads for *_, threads in toy.seen()} == {max(1, torch.get_num_threads() // 2)}
    assert sorted(told.steps) == [(f"class {label}", 1, 1) for label in range(5)]


def test_a_job_whose_process_dies_is_tried_once_more(tmp_path: Path, two):
    toy, told = Toy(tmp_path, dies_once=1), Told()
    outcomes = run(two, toy, tmp_path / "run", told)
    assert all(isinstance(one, JobResult) for one in outcomes)
    assert sorted(label for label, *_ in toy.seen()) == [0, 1, 1, 2, 3, 4]
    assert len(told.warnings) == 1 and "was killed by signal 9; another one tries again" in told.warnings[0]


def test_a_job_that_kills_its_process_twice_is_listed_like_one_that_fails(tmp_path: Path, two):
    outcomes = run(two, Toy(tmp_path, dies=1, diverges=3), tmp_path / "run")
    failed = {one.job.classes[0]: one.message for one in outcomes if isinstance(one, JobFailure)}
    assert failed == {1: "its process was killed by signal 9, 2 times", 3: "expected finite losses"}
    assert len(content(tmp_path / "run")) == 3


def test_a_device_that_is_lost_costs_its_process_not_the_run(tmp_path: Path, two):
    toy, told = Toy(tmp_path, loses=2), Told()
    outcomes = run(two, toy, tmp_path / "run", told)
    assert all(isinstance(one, JobResult) for one in outcomes)
    poisoned = next(pid for label, pid, _ in toy.seen() if label == 2)
    assert [label for label, pid, _ in toy.seen() if pid == poisoned][-1] == 2  # nothing was done in it after that
    lost = "its process lost its device (CUDA error: device-side assert triggered); another one tries again"
    assert told.warnings == [f"{JOBS[2].name}: {lost}"]


def test_a_job_that_loses_every_device_is_listed_and_the_others_go_on(tmp_path: Path, two):
    toy, told = Toy(tmp_path, asserts=1), Told()
    outcomes = run(two, toy, tmp_path / "run", told)
    (failed,) = [one for one in outcomes if isinstance(one, JobFailure)]
    assert failed.job is JOBS[1]
    assert failed.message == "its process lost its device (CUDA error: device-side assert triggered), 2 times"
    assert len(content(tmp_path / "run")) == 4
    assert len({pid for label, pid, _ in toy.seen() if label == 1}) == 2


def test_a_broken_device_gets_no_more_jobs_and_the_others_do_them(tmp_path: Path):
    seats = [{**place, "SEAT": str(seat)} for seat, place in enumerate(places("cpu", 2))]
    toy, told = Toy(tmp_path, seat="0"), Told()
    with Processes("cpu", seats) as pool:
        outcomes = run(pool, toy, tmp_path / "run", told)
    assert all(isinstance(one, JobResult) for one in outcomes)
    tries = [label for label, *_ in toy.seen()]
    assert len(told.warnings) == len(tries) - 5 <= 3
    assert max(map(tries.count, tries)) <= 2  # a job that was lost goes to another place


def test_without_a_device_that_works_the_run_stops(tmp_path: Path, capfd):
    seats = [{**places("cpu", 2)[0], "SEAT": "0"}] * 2
    toy, told = Toy(tmp_path, seat="0"), Told()
    with Processes("cpu", seats) as pool, pytest.raises(DeviceLost, match="none that can work"):
        run(pool, toy, tmp_path / "run", told)
    assert len(toy.seen()) <= 6
    assert capfd.readouterr().err == ""  # the processes end without a word; it is the run that speaks


def test_a_wrong_setting_stops_the_run_and_the_processes(tmp_path: Path, two):
    with pytest.raises(ConfigError, match="steps"):
        run(two, Toy(tmp_path, refuses=0, waits=1), tmp_path / "run")
    for pid in {pid for _, pid, _ in Toy(tmp_path).seen()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(run(two, Toy(tmp_path), tmp_path / "run")) == 5  # others are started for the next work


def test_work_that_cannot_be_sent_is_done_here(tmp_path: Path, two):
    told = Told()
    toy = Toy(tmp_path)
    toy.hook = lambda: None  # type: ignore[attr-defined]
    assert len(run(two, toy, tmp_path / "run", told)) == 5
    assert "cannot be sent to another process" in told.warnings[0]


def test_processes_that_cannot_start_are_not_started_for_ever(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("mi_audit.audit.executor_processes.START", "import sys; sys.exit(3)")
    told = Told()
    with Processes("cpu", places("cpu", 2)) as pool, pytest.raises(DeviceLost, match="none that can work"):
        run(pool, Toy(tmp_path), tmp_path / "run", told)
    assert len(told.warnings) == 2 and "ended with code 3 before it could work" in told.warnings[0]


RUN = """
import sys
from pathlib import Path
from tests.audit.test_executor import Toy, run, places, Processes
with Processes("cpu", places("cpu", 2)) as pool:
    run(pool, Toy(Path(sys.argv[1]), waits=1), Path(sys.argv[1]) / "run")
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_run(tmp_path: Path, signum: int):
    parent = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list((tmp_path / "run").glob("jobs/gmi-*.safetensors"))) < 4:
        time.sleep(0.05)
    pids = {pid for _, pid, _ in Toy(tmp_path).seen()}
    parent.send_signal(signum)
    parent.wait()
    assert len(pids) == 2
    while time.monotonic() < deadline and any(map(lives, pids)):
        time.sleep(0.05)
    assert not any(map(lives, pids))
    with RunFolder(tmp_path / "run") as kept:  # and the folder is free
        assert [kept.read_job(job.name) is not None for job in JOBS] == [True, False, True, True, True]


def lives(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody waits for does not."""
    state = Path(f"/proc/{pid}/stat")
    if state.parent.parent.joinpath("self").exists():
        return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_device_is_this_process():
    with executor_for("cuda:1", 1) as alone:
        assert alone == InProcess("cuda:1")


def test_every_process_sees_one_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places("cuda", 3)] == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7, 2")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places("cuda", 2)] == ["5", "GPU-7"]
    assert places("cuda", 2)[0]["OMP_NUM_THREADS"] == "4"
    with pytest.raises(ConfigError, match="up to 3, got 4"):
        places("cuda", 4)


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_several_processes_on_one_named_device_are_refused(device: str):
    with pytest.raises(ConfigError, match=rf"cpu or cuda with --devices 2, got {device}"):
        executor_for(device, 2)


def test_a_device_without_memory_is_not_a_lost_one(monkeypatch):
    def full(*_given, **_named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "ones", full)
    failed = attempt(JOBS[0], full, Silent().step, "cpu")
    assert failed.produced is None and failed.message.startswith("OutOfMemoryError: CUDA out of memory (full, line")
