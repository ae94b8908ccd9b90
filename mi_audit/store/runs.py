"""The folder of one run: one writer at a time, and every file complete or absent."""

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from mi_audit.core.errors import ConfigError, StorageError
from mi_audit.store.documents import UNREADABLE
from mi_audit.store.drafts import is_draft
from mi_audit.store.files import (
    canonical_json,
    forget_drafts,
    make_folder,
    read_file,
    storage_error,
    write_atomic,
)
from mi_audit.store.latest import MARKER, find_run, point_latest

LOCK = ".lock"
OWNER = ".owner.json"
BATCHES = "batches.json"
LARGEST = 2**20  # images at once; a file that says as many or more is damaged
RECORD = "mi_audit"  # the only metadata key: safetensors writes several keys in a random order

Job = tuple[dict[str, Tensor], dict[str, object]]


class RunFolder:
    """A folder that holds one run, locked from construction until `close`.

    The lock is the operating system's, so it disappears with the process, however that ends. The owner is written
    beside it for the message, and for disks shared with machines whose locks are not visible here.
    """

    def __init__(self, path: Path) -> None:
        """Create or reopen the run folder, readable by its owner only.

        Raises:
            ConfigError: The folder holds something else, or another process writes to it.
            StorageError: The folder cannot be written.
        """
        self.path = path
        if path.exists() and not path.is_dir():
            raise ConfigError(f"expected a folder to write the run to, got the file {path}; choose another --out")
        make_folder(path, mode=0o700)
        _refuse_foreign(path)
        _make_private(path)
        self._lock = FileLock(path / LOCK, timeout=0, mode=0o600)
        self._acquire()
        try:
            self._own()
        except StorageError:
            self.close()
            raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write to the folder; safe to call twice."""
        if self._lock.is_locked:
            (self.path / OWNER).unlink(missing_ok=True)
            self._lock.release()

    def forget_jobs(self) -> None:
        """Remove the results of finished jobs and the pictures made from them, so that they are run again."""
        for name in ("jobs", "images"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / BATCHES).unlink(missing_ok=True)

    @staticmethod
    def find(ref: str) -> Path:
        """The run folder meant by `runs/latest`, a run folder, or a `result.json`; see `store.latest.find_run`."""
        return find_run(ref)

    def job_file(self, name: str) -> Path:
        """Where the result of job `name` is kept.

        Raises:
            ConfigError: The name is not a plain file name.
        """
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ConfigError(f"expected letters, digits, '.', '_', '+' or '-', got job name '{name}'; rename it")
        return self.path / "jobs" / f"{name}.safetensors"

    def write_job(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
        """Save a finished job; equal tensors and facts give equal bytes.

        Facts are whatever `canonical_json` accepts, and come back as plain JSON.

        Raises:
            StorageError: The file could not be written; nothing partial is left.
        """
        rows = {
            key: tensors[key].detach().cpu().clone(memory_format=torch.contiguous_format) for key in sorted(tensors)
        }
        written = canonical_json(facts)
        record = canonical_json({"facts": written, "sha256": _checksum(rows, written)})
        write_atomic(self.job_file(name), safetensors.torch.save(rows, {RECORD: record}), private=True)

    def read_job(self, name: str) -> Job | None:
        """The tensors and facts of a finished job, or None when it must be done.

        A damaged file counts as not done and is set aside with the suffix `.damaged`.

        Raises:
            StorageError: The file exists but cannot be read or set aside.
        """
        path = self.job_file(name)
        if not path.exists():
            return None
        job = _parse(read_file(path))
        if job is None:
            try:
                path.replace(path.with_name(path.name + ".damaged"))
            except OSError as error:
                raise storage_error("set aside", path, error) from error
        return job

    def write_text(self, name: str, text: str) -> Path:
        """Write `name`, relative to the folder, as UTF-8 and return its path.

        Raises:
            StorageError: The file could not be written.
        """
        path = self.path / name
        write_atomic(path, text.encode(), private=True)
        return path

    def write_plan(self, plan: Mapping[str, object]) -> None:
        """Keep what the run is going to do, for `resume`.

        Raises:
            StorageError: The file could not be written.
        """
        self.write_text("plan.json", json.dumps(json.loads(canonical_json(plan)), indent=2, sort_keys=True) + "\n")

    def read_plan(self) -> dict[str, object]:
        """What `write_plan` kept.

        Raises:
            ConfigError: The run was stopped before it had a plan.
            StorageError: The plan is damaged.
        """
        path = self.path / "plan.json"
        if not path.exists():
            raise ConfigError(f"expected a plan in {path}, got none; repeat the command that started the run")
        try:
            plan = json.loads(read_file(path))
        except UNREADABLE as error:
            raise StorageError(
                f"expected JSON, got a damaged file {path}; repeat the command that started the run"
            ) from error
        if not isinstance(plan, dict):
            raise StorageError(f"expected a JSON object, got {type(plan).__name__} in {path}; repeat the command")
        return plan

    def write_batches(self, sizes: Mapping[str, int]) -> None:
        """Keep the batch sizes that were chosen, by what they were chosen for.

        Raises:
            StorageError: The file could not be written.
        """
        self.write_text(BATCHES, json.dumps(sizes, indent=2, sort_keys=True) + "\n")

    def read_batches(self) -> dict[str, int]:
        """What `write_batches` kept; nothing when there is no such file, or a damaged one."""
        try:
            sizes = json.loads((self.path / BATCHES).read_bytes())
        except (OSError, *UNREADABLE):
            return {}
        good = isinstance(sizes, dict) and all(type(size) is int and 0 < size < LARGEST for size in sizes.values())
        return sizes if good else {}

    def point_latest(self) -> None:
        """Let `runs/latest` mean this run, if it lies in a folder called `runs` and the file system has links."""
        point_latest(self.path)

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Timeout as error:
            owner = _owner(self.path)
            raise ConfigError(
                f"expected nobody else to write to {self.path}, got process {owner.get('pid', 'unknown')}; "
                "wait for it, stop it, or choose another --out"
            ) from error
        except OSError as error:
            raise storage_error("lock", self.path, error) from error
        host = _owner(self.path).get("host", platform.node())
        if host != platform.node():
            self._lock.release()
            raise ConfigError(
                f"expected nobody else to write to {self.path}, got a run on the machine {host}; "
                f"wait for it, or delete {self.path / OWNER} if that run has ended"
            )

    def _own(self) -> None:
        """Say who writes here and what the folder is, and clear away what a killed run was just writing."""
        owner = {"pid": os.getpid(), "host": platform.node()}
        write_atomic(self.path / OWNER, canonical_json(owner).encode(), private=True)
        if not (self.path / MARKER).exists():
            about = canonical_json({"kind": "mi-audit run", "format": 1})
            write_atomic(self.path / MARKER, about.encode(), private=True)
        forget_drafts(self.path)


def _refuse_foreign(path: Path) -> None:
    try:
        found = {item.name for item in path.iterdir()}
    except OSError as error:
        raise storage_error("open", path, error) from error
    names = {name for name in found if name not in (LOCK, OWNER) and not is_draft(name)}  # of a run killed at its start
    if names and MARKER not in names:
        raise ConfigError(
            f"expected an empty folder or a run folder, got {path} with {min(names)} in it; choose another --out"
        )


def _make_private(path: Path) -> None:
    try:
        path.chmod(0o700)
    except OSError as error:
        raise storage_error("make private", path, error) from error


def _owner(path: Path) -> dict[str, object]:
    try:
        owner = json.loads((path / OWNER).read_bytes())
    except (OSError, *UNREADABLE):
        return {}
    return owner if isinstance(owner, dict) else {}


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    total = hashlib.sha256(facts.encode())
    for key, tensor in sorted(tensors.items()):
        total.update(canonical_json([key, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _parse(data: bytes) -> Job | None:
    """The job in the bytes of a file, or None when they are not exactly what was written."""
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        record = json.loads(header["__metadata__"][RECORD])
        if record["sha256"] != _checksum(tensors, record["facts"]):
            return None
        facts = json.loads(record["facts"])
    except (SafetensorError, *UNREADABLE, KeyError, TypeError):
        return None
    return tensors, facts
