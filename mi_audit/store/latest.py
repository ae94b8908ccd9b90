"""Finding runs on disk; free of torch, because judging a saved run needs none."""

import contextlib
import os
from pathlib import Path

from mi_audit.core.errors import ConfigError

MARKER = "run.json"  # makes a folder a run folder
RUNS = "runs"
LATEST = "latest"


def find_run(ref: str) -> Path:
    """The run folder meant by `runs/latest`, a run folder, or a `result.json` inside one.

    Where links are not supported, `runs/latest` is the run that was started last.

    Raises:
        ConfigError: There is no such run.
    """
    path = Path(ref)
    if path.is_file():
        return path.parent
    if path.is_dir():
        return path.resolve() if path.name == LATEST else path
    started = sorted(path.parent.glob(f"*/{MARKER}"), key=_age) if path.name == LATEST else []
    if not started:
        raise ConfigError(
            f"expected a run folder or a result.json, got {ref}; run `mi-audit attack` first or check the path"
        )
    return started[-1].parent


def point_latest(run: Path) -> None:
    """Let `runs/latest` mean `run`, if it lies in a folder called `runs` and the file system has links."""
    if run.parent.name != RUNS:
        return  # a folder the user chose is no place to leave links in
    draft = run.parent / f".{LATEST}.{os.getpid()}"
    with contextlib.suppress(OSError):
        draft.symlink_to(run.name, target_is_directory=True)
        draft.replace(run.parent / LATEST)
    with contextlib.suppress(OSError):
        draft.unlink()


def _age(marker: Path) -> tuple[float, str]:
    return marker.stat().st_mtime, marker.parent.name
