"""An unfinished training run on disk: tensors and plain values, written whole or not at all."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mi_audit.store.files import write_atomic


def save(path: Path | None, run: str, state: Mapping[str, object]) -> None:
    """Write `state` under the name of its run; without a path nothing is kept.

    Raises:
        StorageError: The file cannot be written.
    """
    if path is not None:
        buffer = io.BytesIO()
        torch.save({"run": run, **state}, buffer)
        write_atomic(path, buffer.getvalue())


def load(path: Path | None, run: str) -> dict[str, Any] | None:
    """The last state of `run`; None when there is none, when it is damaged, or when it belongs to another run."""
    if path is None or not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return state if isinstance(state, dict) and state.get("run") == run else None


def clear(path: Path | None) -> None:
    """Forget a finished run."""
    if path is not None:
        path.unlink(missing_ok=True)
