"""Things that are slow to make and depend on their inputs only: decoded pixels, evaluators, priors."""

import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from mi_audit.core.errors import ConfigError
from mi_audit.store.drafts import sweep_drafts
from mi_audit.store.files import make_folder, storage_error, write_atomic

VARIABLE = "MI_AUDIT_CACHE_DIR"
MARKER = ".mi-audit-cache"  # only folders that hold it are ever deleted
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Entry:
    """One folder of the cache.

    Attributes:
        size: Bytes on disk.
        used: Time of the last use, in seconds since 1970.
    """

    kind: str
    key: str
    path: Path
    size: int
    used: float


class Cache:
    """Folders named by a hash of what their content depends on, `<root>/<kind>/<key>`.

    An entry is complete when it contains its final file, which is written atomically; whoever fills an entry writes
    that file last and whoever reads one looks for it.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Use `root`, else the folder named by `MI_AUDIT_CACHE_DIR`, else the user's cache folder."""
        chosen = os.environ.get(VARIABLE)
        self.root = root or Path(chosen or platformdirs.user_cache_dir("mi-audit", appauthor=False)).expanduser()
        self._swept = False

    def folder(self, kind: str, key: str) -> Path:
        """The folder of `key`, created readable by its owner only, and marked as used now.

        The first one that is asked for also clears away what killed processes were just writing to the cache.

        Raises:
            ConfigError: `kind` or `key` is not a plain file name.
            StorageError: The folder cannot be created.
        """
        for name in (kind, key):
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ConfigError(f"expected letters, digits, '.', '_', '+' or '-', got cache name '{name}'; rename it")
        make_folder(self.root, mode=0o700)
        if not self._swept:
            self._swept = True
            self.sweep()
        path = make_folder(self.root / kind / key)
        write_atomic(path / MARKER, b"", private=True)
        return path

    def entries(self) -> tuple[Entry, ...]:
        """All entries, complete or not, by kind and key."""
        return tuple(_entry(marker) for marker in sorted(self.root.glob(f"*/*/{MARKER}")))

    def sweep(self) -> int:
        """Remove unfinished files that nobody is writing any more, and return how many; others may use the cache."""
        return sweep_drafts(self.root.glob("*/*/.*.tmp"))

    def clear(self, kind: str | None = None) -> int:
        """Delete the entries of `kind`, or all, and return how many.

        Raises:
            StorageError: An entry cannot be deleted.
        """
        return _delete(entry for entry in self.entries() if kind in (None, entry.kind))

    def prune(self, max_age_days: float) -> int:
        """Delete the entries that nobody used for `max_age_days` and return how many.

        Raises:
            StorageError: An entry cannot be deleted.
        """
        self.sweep()
        oldest = time.time() - max_age_days * DAY
        return _delete(entry for entry in self.entries() if entry.used < oldest)


def _entry(marker: Path) -> Entry:
    path = marker.parent
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Entry(path.parent.name, path.name, path, size, marker.stat().st_mtime)


def _delete(entries: Iterable[Entry]) -> int:
    doomed = tuple(entries)
    for entry in doomed:
        try:
            shutil.rmtree(entry.path)
        except OSError as error:
            raise storage_error("delete", entry.path, error) from error
    return len(doomed)
