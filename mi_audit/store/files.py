"""Files that are either complete or absent, and the hashes that name them."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import BinaryIO

from mi_audit.core.errors import StorageError
from mi_audit.store.drafts import create_draft, draft_of, is_draft

CURES = {
    errno.ENOSPC: "free disk space or choose another folder, then repeat the command to resume",
    errno.EDQUOT: "free some of your disk quota or choose another folder, then repeat the command to resume",
    errno.EACCES: "make the folder writable or choose another one",
    errno.EPERM: "make the folder writable or choose another one",
    errno.EROFS: "choose a folder on a writable disk",
    errno.ENOTDIR: "choose another path: a part of this one is a file, not a folder",
    errno.EEXIST: "choose another path: a part of this one is a file, not a folder",
    errno.EISDIR: "choose another path: this one is a folder",
}


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> None:
    """Put `data` at `path` so that a reader sees the old file or the whole new one, never a part.

    A `private` file is readable by its owner only (mode 0600).

    Raises:
        StorageError: The file could not be written; an earlier file is intact and nothing partial is left.
    """
    with replacing(path, private=private) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of `path` that takes its place when the block ends well and vanishes when it does not.

    Raises:
        StorageError: An operating system call failed, inside the block or after it.
    """
    draft, guard = draft_of(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a private picture must not be readable for a moment before a chmod
        descriptor, guard = create_draft(draft, 0o600 if private else 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a name must not point to data that a power cut can still lose
        draft.replace(path)
    except OSError as error:
        raise storage_error("write", path, error) from error
    finally:
        if draft.exists():
            draft.unlink()
        if guard is not None:
            os.close(guard)  # only now is the draft nobody's


def forget_drafts(folder: Path) -> None:
    """Remove what killed processes left of unfinished files below `folder`; nobody else may write there meanwhile.

    Raises:
        StorageError: One cannot be removed.
    """
    for path in folder.rglob(".*.tmp"):
        if is_draft(path.name):
            try:
                path.unlink()
            except OSError as error:
                raise storage_error("remove", path, error) from error


def read_file(path: Path) -> bytes:
    """The whole content of `path`.

    Raises:
        StorageError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise storage_error("read", path, error) from error


def hash_file(path: Path) -> str:
    """SHA-256 of the content of `path`, in hexadecimal.

    Raises:
        StorageError: It is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise storage_error("read", path, error) from error


def make_folder(path: Path, mode: int = 0o777) -> Path:
    """Create `path` and its parents unless it exists; `mode` applies to the last folder when it is created.

    Raises:
        StorageError: It cannot be created.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("create", path, error) from error
    return path


def digest(*parts: object) -> str:
    """SHA-256 of the canonical JSON of `parts`, in hexadecimal; the id of whatever is determined by them."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def canonical_json(value: object) -> str:
    """The one spelling of `value` as JSON: sorted keys, no spaces, no NaN; paths, sets, bytes and dataclasses allowed.

    Raises:
        ValueError: A number is NaN or infinite.
        TypeError: A value has no JSON form.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def storage_error(verb: str, path: Path, error: OSError) -> StorageError:
    """The one-line error for a failed system call on `path`, with what to do about it."""
    cure = CURES.get(error.errno or 0, "check the path and its permissions")
    return StorageError(f"expected to {verb} {path}, got: {error.strerror or error}; {cure}")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"expected a JSON value, got {type(value).__name__}")
