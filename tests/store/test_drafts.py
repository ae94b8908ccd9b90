"""Drafts of killed processes are swept; those of living ones never, however many sweep at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mi_audit.store import drafts
from mi_audit.store.cache import Cache
from mi_audit.store.drafts import create_draft, draft_of, is_draft, sweep_drafts
from mi_audit.store.files import replacing, write_atomic


def hidden(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".*.tmp"))


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    return Cache(tmp_path / "cache").folder("priors", "abc")


WRITER = """
import sys, time
from pathlib import Path
from mi_audit.store.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def writer(entry: Path):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(entry / "weights")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def test_the_draft_of_a_killed_process_is_swept_by_the_next_that_uses_the_cache(entry: Path, writer):
    cache = Cache(entry.parents[1])
    cache.folder("priors", "other")
    assert len(hidden(entry)) == 1  # it is being written
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    cache.folder("priors", "other")
    assert len(hidden(entry)) == 1  # once per run is enough
    Cache(entry.parents[1]).folder("priors", "other")
    assert hidden(entry) == [] and not (entry / "weights").exists()


def test_a_living_writer_finishes_whatever_is_swept_meanwhile(entry: Path, writer):
    assert Cache(entry.parents[1]).sweep() == 0
    writer.communicate(b"\n", timeout=30)
    assert (entry / "weights").read_bytes() == b"half" and hidden(entry) == []


def test_a_draft_stays_its_writers_until_it_has_its_place(entry: Path, monkeypatch):
    replace, swept = Path.replace, []

    def late(draft, target):
        swept.append(sweep_drafts([draft]))
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", late)
    write_atomic(entry / "weights", b"all")
    assert swept == [0] and (entry / "weights").read_bytes() == b"all"


def test_a_draft_that_is_swept_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch):
    draft, lock, swept = draft_of(tmp_path / "file"), drafts._lock, []

    def late(descriptor, *, wait=True):
        if wait and not swept:
            swept.append(sweep_drafts([draft]))
        return lock(descriptor, wait=wait)

    monkeypatch.setattr(drafts, "_lock", late)
    descriptor, guard = create_draft(draft, 0o600)
    assert swept == [1] and os.fstat(descriptor).st_ino == draft.stat().st_ino
    os.close(descriptor), os.close(guard)


def test_a_sweep_that_comes_second_leaves_what_was_made_again(tmp_path: Path, monkeypatch):
    draft, lock = draft_of(tmp_path / "file"), drafts._lock
    draft.touch()

    def late(descriptor, *, wait=True):  # another sweep removes the opened draft, and its writer makes it again
        draft.unlink()
        draft.write_bytes(b"again")
        return lock(descriptor, wait=wait)

    monkeypatch.setattr(drafts, "_lock", late)
    assert sweep_drafts([draft]) == 0 and draft.read_bytes() == b"again"


def test_where_locks_do_not_tell_a_day_does(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(drafts, "fcntl", None)
    young, old = draft_of(tmp_path / "a"), draft_of(tmp_path / "b")
    for draft, hours in ((young, 23), (old, 25)):
        draft.touch()
        os.utime(draft, (time.time() - 3600 * hours,) * 2)
    assert sweep_drafts([young, old]) == 1 and hidden(tmp_path) == [young]
    write_atomic(tmp_path / "file", b"all")  # and files are written all the same
    assert (tmp_path / "file").read_bytes() == b"all"


def test_a_draft_that_cannot_be_removed_does_not_stop_the_run(tmp_path: Path, monkeypatch):
    left = draft_of(tmp_path / "a")
    left.touch()
    monkeypatch.setattr(Path, "unlink", lambda *_given, **_named: (_ for _ in ()).throw(PermissionError()))
    assert sweep_drafts([left, draft_of(tmp_path / "gone")]) == 0


def test_nothing_but_drafts_inside_entries_is_swept(entry: Path):
    kept = [entry / ".notes.tmp", entry / "x.0123456789ab.tmp", entry.parents[1] / ".x.0123456789ab.tmp"]
    for path in (*kept, gone := entry / ".x.0123456789ab.tmp"):
        path.touch()
    assert Cache(entry.parents[1]).sweep() == 1
    assert all(path.exists() for path in kept) and not gone.exists()
    assert is_draft(gone.name) and not is_draft(kept[0].name)


def test_pruning_sweeps_too(entry: Path):
    draft_of(entry / "x").touch()
    assert Cache(entry.parents[1]).prune(30.0) == 0 and hidden(entry) == []


def test_many_writers_and_sweepers_at_once_lose_nothing(entry: Path):
    stop = threading.Event()

    def sweep():
        while not stop.is_set():
            Cache(entry.parents[1]).sweep()

    sweepers = [threading.Thread(target=sweep) for _ in range(3)]
    for one in sweepers:
        one.start()
    try:
        for number in range(200):
            with replacing(entry / "file") as file:
                file.write(str(number).encode())
            assert (entry / "file").read_text() == str(number)
    finally:
        stop.set()
        for one in sweepers:
            one.join()
    assert hidden(entry) == []
