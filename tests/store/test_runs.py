import errno
import json
import os
import platform
import signal
import stat
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from mi_audit.core.errors import ConfigError, StorageError
from mi_audit.store.files import write_atomic
from mi_audit.store.runs import OWNER, RunFolder

TENSORS = {
    "pixels": torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2),
    "labels": torch.tensor([3]),
    "half": torch.tensor([[0.5, -1.0]], dtype=torch.bfloat16),
    "number": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
}
BOTTOMLESS = "[" * 200_000  # JSON that the parser gives up on
HOLD = """
import sys, pathlib
from mi_audit.store.runs import RunFolder
run = RunFolder(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path):
    with RunFolder(tmp_path / "runs" / "one") as folder:
        yield folder


def test_run_folder_is_private_even_when_it_existed(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    with RunFolder(tmp_path / "open") as run, RunFolder(tmp_path / "new") as other:
        assert [stat.S_IMODE(folder.path.stat().st_mode) for folder in (run, other)] == [0o700, 0o700]


def test_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"with thesis\.tex in it; choose another --out"):
        RunFolder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="got the file"):
        RunFolder(tmp_path / "file")


def test_second_writer_is_refused_by_pid_until_the_first_closes(run):
    with pytest.raises(ConfigError, match=f"got process {os.getpid()}; wait for it"):
        RunFolder(run.path)
    run.close()
    run.close()
    RunFolder(run.path).close()


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_lock_of_another_process_dies_with_it(tmp_path, holder):
    with pytest.raises(ConfigError, match=f"got process {holder.pid};"):
        RunFolder(tmp_path / "run")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunFolder(tmp_path / "run") as run:
        assert json.loads((run.path / OWNER).read_text())["pid"] == os.getpid()


def test_owner_on_another_machine_is_named_and_the_lock_given_back(tmp_path):
    RunFolder(tmp_path / "run").close()
    (tmp_path / "run" / OWNER).write_text('{"pid": 7, "host": "elsewhere"}')
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"got a run on the machine elsewhere; .* delete .*\.owner\.json"):
            RunFolder(tmp_path / "run")
    (tmp_path / "run" / OWNER).write_text(json.dumps({"pid": 7, "host": platform.node()}))
    RunFolder(tmp_path / "run").close()


def test_unreadable_owner_is_no_obstacle(tmp_path):
    RunFolder(tmp_path / "run").close()
    (tmp_path / "run" / OWNER).write_text("[")
    RunFolder(tmp_path / "run").close()


def test_job_comes_back_bit_for_bit(run):
    run.write_job("gmi-c0-s0", TENSORS, {"steps": 3, "losses": (1.5, 0.25)})
    tensors, facts = run.read_job("gmi-c0-s0")
    assert facts == {"steps": 3, "losses": [1.5, 0.25]}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert stat.S_IMODE(run.job_file("gmi-c0-s0").stat().st_mode) == 0o600


def test_equal_jobs_are_equal_files(run):
    facts = {str(number): number for number in range(20)}
    run.write_job("a", TENSORS, facts)
    run.write_job("b", dict(reversed(TENSORS.items())), dict(reversed(facts.items())))
    assert run.job_file("a").read_bytes() == run.job_file("b").read_bytes()


def test_views_and_shared_memory_are_written_as_they_look(run):
    grid = torch.arange(6.0).view(2, 3)
    run.write_job("a", {"grid": grid, "turned": grid.T, "row": grid[1]}, {})
    tensors, _ = run.read_job("a")
    assert torch.equal(tensors["turned"], grid.T)
    assert tensors["row"].tolist() == [3, 4, 5]


def test_job_that_was_not_done_is_none(run):
    assert run.read_job("absent") is None


def cut(data):
    return data[:-1]


def flip(data):
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def other_facts(data):
    return data.replace(b"steps", b"stepz")


def unsigned(data):
    return data.replace(b"sha256", b"sha257")


def empty(data):
    return b""


@pytest.mark.parametrize("damage", [cut, flip, other_facts, unsigned, empty])
def test_damaged_job_is_set_aside_and_done_again(run, damage):
    run.write_job("a", TENSORS, {"steps": 3})
    path, whole = run.job_file("a"), run.job_file("a").read_bytes()
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    assert run.read_job("a") is None
    assert not path.exists()
    assert path.with_name("a.safetensors.damaged").read_bytes() == damage(whole)
    run.write_job("a", TENSORS, {"steps": 3})
    assert run.read_job("a") is not None


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a"])
def test_job_names_that_leave_the_folder_are_refused(run, name):
    with pytest.raises(ConfigError, match="job name"):
        run.job_file(name)


def test_full_disk_loses_nothing(run, monkeypatch):
    run.write_job("a", TENSORS, {"steps": 3})

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in ("a", "b"):
        with pytest.raises(StorageError, match="repeat the command to resume"):
            run.write_job(name, TENSORS, {"steps": 4})
    assert run.read_job("a")[1] == {"steps": 3}
    assert [path.name for path in (run.path / "jobs").iterdir()] == ["a.safetensors"]


def test_plan_comes_back(run):
    run.write_plan({"kind": "attack", "classes": (0, 1)})
    assert run.read_plan() == {"kind": "attack", "classes": [0, 1]}


def test_missing_and_damaged_plans_are_explained(run):
    with pytest.raises(ConfigError, match="got none; repeat the command"):
        run.read_plan()
    for text in ("{", "[]", BOTTOMLESS):
        run.write_text("plan.json", text)
        with pytest.raises(StorageError, match="expected"):
            run.read_plan()


@pytest.mark.parametrize("text", ["", "[]", BOTTOMLESS, *(f'{{"gmi": {size}}}' for size in (0, -1, 2**20, 10**30))])
def test_damaged_batch_sizes_and_absurd_ones_are_none(run, text):
    run.write_batches({"gmi": 2**20 - 1, "ppa": 1})
    assert run.read_batches() == {"gmi": 2**20 - 1, "ppa": 1}
    run.write_text("batches.json", text)
    assert run.read_batches() == {}


def test_an_owner_that_cannot_be_read_is_unknown(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.write_text(".owner.json", BOTTOMLESS)
        with pytest.raises(ConfigError, match="process unknown"):
            RunFolder(tmp_path / "run")


def test_a_job_whose_record_has_no_bottom_is_damaged(run):
    write_atomic(run.job_file("a"), safetensors.torch.save({}, {"mi_audit": BOTTOMLESS}), private=True)
    assert run.read_job("a") is None


def test_text_is_written_below_the_folder(run):
    path = run.write_text("notes/a.txt", "naïve")
    assert path == run.path / "notes" / "a.txt"
    assert path.read_bytes() == "naïve".encode()


def test_find_and_latest_go_through_the_class(run):
    run.point_latest()
    assert RunFolder.find(str(run.path.parent / "latest")) == run.path.resolve()
