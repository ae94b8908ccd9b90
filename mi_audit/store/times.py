"""Where the clock time of a run is kept: `timing.json`. Needs no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mi_audit.core.errors import StorageError
from mi_audit.store.documents import UNREADABLE

TIMES_FILE = "timing.json"


def read_times(folder: Path) -> dict[str, Any] | None:
    """Seconds by stage and by job, and their total; None when the run has not written them yet.

    Raises:
        StorageError: The file is damaged or cannot be read.
    """
    file = folder / TIMES_FILE
    if not file.is_file():
        return None
    try:
        times = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, *UNREADABLE) as error:
        raise _damaged(file) from error
    good = isinstance(times, dict) and all(_seconds(times.get(table)) for table in ("stages", "jobs"))
    if not good or not _number(times.get("total_seconds", 0.0)):
        raise _damaged(file)
    return times


def _seconds(table: object) -> bool:
    return isinstance(table, Mapping) and all(_number(spent) for spent in table.values())


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _damaged(file: Path) -> StorageError:
    return StorageError(
        f"expected seconds by stage and job, got a damaged file {file}; delete it, or repeat the command of the run, "
        "which writes it anew"
    )
