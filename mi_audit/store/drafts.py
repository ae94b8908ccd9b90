"""Files that are being written: whose they are, and how those of killed processes are told from the others.

A writer holds a lock of the system on its draft. The lock disappears with the process, however that ends and whichever
machine or container it runs on, so that a draft which nobody locks belongs to nobody.
"""

import os
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has other locks: there, age alone tells
    fcntl = None  # type: ignore[assignment]

ABANDONED = 86_400  # seconds after which a draft is nobody's, where locks do not tell: nothing is written for a day


def draft_of(path: Path) -> Path:
    """A temporary neighbour of `path` that nobody else has."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")


def is_draft(name: str) -> bool:
    """Whether `draft_of` gives such names."""
    return re.fullmatch(r"\..+\.[0-9a-f]{12}\.tmp", name) is not None


def create_draft(draft: Path, mode: int) -> tuple[int, int | None]:
    """Create the file and lock it: a descriptor to write to, and one that holds the lock until it is closed, if any.

    Raises:
        OSError: It cannot be created.
    """
    while True:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        if not _lock(descriptor):
            return descriptor, None
        if os.fstat(descriptor).st_nlink:
            return descriptor, os.dup(descriptor)
        os.close(descriptor)  # it was swept before it was locked


def sweep_drafts(paths: Iterable[Path]) -> int:
    """Remove those drafts among `paths` whose writers are dead, or that nobody touched for a day; how many.

    Any number of processes may write and sweep at the same time. What is no draft stays, and one that cannot be looked
    at or removed is left to the next sweep.
    """
    swept = 0
    for path in paths:
        if is_draft(path.name):
            with suppress(OSError):
                swept += _removed(path)
    return swept


def _removed(draft: Path) -> bool:
    descriptor = os.open(draft, os.O_WRONLY)
    try:
        if not (_lock(descriptor, wait=False) or time.time() - os.fstat(descriptor).st_mtime > ABANDONED):
            return False
        if not os.fstat(descriptor).st_nlink:  # another sweep was faster, and the writer may have made it again
            return False
        draft.unlink()  # the one that is locked; when it has just become a file, there is none of that name
        return True
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Whether the lock could be had; never on systems and disks without such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
