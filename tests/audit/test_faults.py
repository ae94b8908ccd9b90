"""Faults injected into the runner of jobs: whatever happens, finished jobs stay and a repeated run ends the same."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_audit.audit.executor import InProcess
from mi_audit.audit.jobs import Job, JobFailure, JobResult, execute
from mi_audit.audit.progress import Silent
from mi_audit.core.errors import ConfigError, DeviceLost, Diverged, StorageError
from mi_audit.store import files
from mi_audit.store.runs import RunFolder

JOBS = [Job("gmi", (label,), 0, f"{label:064d}") for label in range(3)]
STEPS = ("open", "fdopen", "fsync")  # calls of the system that make a file, before the last: `Path.replace`


def perform(job: Job, on_step):
    return {"labels": torch.tensor(job.classes)}, {"seed": job.seed}


def once(folder: Path, doing=perform) -> list[JobResult | JobFailure]:
    with RunFolder(folder) as run:
        return list(execute(JOBS, doing, run, Silent(), InProcess()))


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "jobs").glob("*"))}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name not in (".lock",)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    once(folder)
    return content(folder)


class Killed(BaseException):
    """The process ends here: nothing after it is run, not even clearing up."""


@contextmanager
def counted(fault: Callable[[int], None]) -> Iterator[list[str]]:
    """Call `fault` with the number of every call of the system that writes a file, before the call is made."""
    made: list[str] = []
    patch = pytest.MonkeyPatch()

    def wrapped(name, call):
        def counting(*given, **named):
            made.append(name)
            fault(len(made))
            return call(*given, **named)

        return counting

    for name in STEPS:
        patch.setattr(files.os, name, wrapped(name, getattr(os, name)))
    patch.setattr(Path, "replace", wrapped("replace", Path.replace))
    try:
        yield made
    finally:
        patch.undo()


def calls() -> int:
    """How many calls a whole run makes: 1 for the lock; 4 for the owner, the marker and every job."""
    return 1 + 4 * (2 + len(JOBS))


def test_a_kill_before_any_call_of_the_system_loses_nothing_and_leaves_nothing(tmp_path: Path, whole):
    for last in range(1, calls() + 1):
        folder = tmp_path / str(last)
        child = os.fork()
        if child == 0:
            try:
                with counted(lambda now, last=last: os.kill(os.getpid(), signal.SIGKILL) if now == last else None):
                    once(folder)
            finally:
                os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        done = {file.name: file.stat().st_mtime_ns for file in folder.glob("jobs/gmi-*")}
        assert len(done) == max(0, (last - 2) // 4 - 2)
        assert all(isinstance(outcome, JobResult) for outcome in once(folder))
        assert content(folder) == whole and leftovers(folder) == []
        assert done.items() <= {file.name: file.stat().st_mtime_ns for file in folder.glob("jobs/gmi-*")}.items()


def test_a_disk_that_is_full_from_any_call_on_stops_the_run_in_one_line_and_is_resumed(tmp_path: Path, whole):
    for first in range(1, calls() + 1):
        folder = tmp_path / str(first)

        def full(now, first=first):
            if now >= first:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with counted(full), pytest.raises(StorageError, match="free disk space"):
            once(folder)
        assert content(folder).items() <= whole.items()
        once(folder)
        assert content(folder) == whole and leftovers(folder) == []


@pytest.mark.parametrize("kept", [0, 1, 50])
def test_a_write_that_is_cut_off_by_a_full_disk_leaves_no_half_file(tmp_path: Path, whole, monkeypatch, kept: int):
    class Half:
        """A file on a disk that takes a part of what is written."""

        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            self._file.close()

        def write(self, data):
            self._file.write(data[:kept])
            self._file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "run"
    once(folder, lambda job, on_step: perform(job, on_step) if job is JOBS[0] else failing(Diverged("x")))
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_own", lambda _run: None)
        opened = os.fdopen
        patch.setattr(files.os, "fdopen", lambda *given: Half(opened(*given)))
        with pytest.raises(StorageError, match="free disk space"):
            once(folder)
    assert len(content(folder)) == 1 and leftovers(folder) == []
    once(folder)
    assert content(folder) == whole


def failing(error: BaseException):
    raise error


FAULTS = {
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "numpy": lambda: MemoryError("Unable to allocate 8 GiB"),
    "nan": lambda: Diverged("expected finite losses, got NaN for classes [1]"),
    "interrupt": KeyboardInterrupt,
    "disk": lambda: StorageError("No space left on device"),
    "setting": lambda: ConfigError("steps"),
}
LISTED = ("memory", "numpy", "nan")


@given(st.lists(st.dictionaries(st.sampled_from(range(3)), st.sampled_from(sorted(FAULTS))), max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_history_of_faults_ends_in_the_same_bytes(tmp_path_factory, whole, history):
    folder, done = tmp_path_factory.mktemp("history") / "run", set[int]()
    for faults in history:
        ran: list[int] = []

        def doing(job: Job, on_step, faults=faults, ran=ran):
            (label,) = job.classes
            ran.append(label)
            return failing(FAULTS[faults[label]]()) if label in faults else perform(job, on_step)

        expected = [label for label in range(3) if label not in done]
        fatal = next((label for label in expected if faults.get(label, "memory") not in LISTED), None)
        if fatal is None:
            outcomes = once(folder, doing)
            assert [o.job.classes[0] for o in outcomes] == [0, 1, 2]
            failed = {o.job.classes[0] for o in outcomes if isinstance(o, JobFailure)}
            assert failed == set(expected) & set(faults) and ran == expected
        else:
            with pytest.raises((KeyboardInterrupt, StorageError, ConfigError)):
                once(folder, doing)
            assert ran == [label for label in expected if label <= fatal]
        done |= {label for label in ran if label not in faults}
        assert len(content(folder)) == len(done)
    assert all(isinstance(outcome, JobResult) for outcome in once(folder))
    assert content(folder) == whole and leftovers(folder) == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError("HIP error: device-side assert triggered"),
        torch.AcceleratorError("an illegal memory access was encountered"),
    ],
    ids=str,
)
def test_an_error_that_poisons_the_process_stops_the_run_at_once_and_finished_jobs_stay(tmp_path: Path, whole, error):
    ran = []

    def doing(job: Job, on_step):
        ran.append(job)
        return failing(error) if job is JOBS[1] else perform(job, 0)

    with pytest.raises(DeviceLost) as caught:
        once(tmp_path / "run", doing)
    assert str(caught.value) == (
        f"expected the device cpu to answer, got {caught.value.reason} in {JOBS[1].name}; finished jobs are kept: type "
        "the command again to resume, or, when it stops at the same place, with another --device"
    )
    assert caught.value.reason == str(error).splitlines()[0]
    assert ran == JOBS[:2] and len(content(tmp_path / "run")) == 1
    once(tmp_path / "run")
    assert content(tmp_path / "run") == whole


def test_a_device_that_does_not_answer_after_an_error_of_any_kind_stops_the_run(tmp_path: Path, whole, monkeypatch):
    monkeypatch.setattr("mi_audit.audit.devices.answers", lambda _device: False)
    with pytest.raises(DeviceLost, match="got probability tensor contains nan"):
        once(tmp_path / "run", lambda *_: failing(ValueError("probability tensor contains nan")))
    assert content(tmp_path / "run") == {}


@pytest.mark.parametrize(
    "message",
    ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "size mismatch",
     "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"],
)  # fmt: skip
def test_an_error_that_leaves_the_device_well_fails_its_job_only(tmp_path: Path, message):
    outcomes = once(tmp_path / "run", lambda *_: failing(RuntimeError(message)))
    assert [type(one) for one in outcomes] == [JobFailure] * 3


def test_a_second_run_in_the_folder_is_refused_and_takes_nothing_away(tmp_path: Path, whole):
    with RunFolder(tmp_path / "run") as first:
        arriving = execute(JOBS, perform, first, Silent(), InProcess())
        next(arriving)
        (first.path / ".x.0123456789ab.tmp").write_bytes(b"just being written")
        with pytest.raises(ConfigError, match="expected nobody else to write"):
            once(tmp_path / "run")
        assert (first.path / ".x.0123456789ab.tmp").exists()
        list(arriving)
    assert content(tmp_path / "run") == whole


def test_a_folder_with_files_of_somebody_else_is_refused_even_when_they_are_hidden(tmp_path: Path):
    (tmp_path / ".git").mkdir()
    with pytest.raises(ConfigError, match=r"with \.git in it"):
        RunFolder(tmp_path)
    assert not (tmp_path / ".lock").exists()
