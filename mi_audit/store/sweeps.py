"""Saved sweeps: canonical JSON out, checked dataclasses in. Needs no torch."""

import json
from dataclasses import asdict
from pathlib import Path

from mi_audit.core.sweep import SWEEP_SCHEMA, Sweep
from mi_audit.store.documents import read_document
from mi_audit.store.files import write_atomic

SWEEP_FILE = "sweep.json"


def sweep_to_json(sweep: Sweep) -> str:
    """Canonical JSON: sorted keys, two spaces, no NaN, a newline at the end; equal sweeps give equal bytes."""
    return json.dumps(asdict(sweep), sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_sweep(path: Path, sweep: Sweep) -> None:
    """Write `sweep` as canonical JSON, all of it or nothing."""
    write_atomic(path, sweep_to_json(sweep).encode(errors="replace"))


def read_sweep(path: Path) -> Sweep:
    """Read a sweep from its file or its folder, and check it. Raises what `read_document` raises."""
    file = path / SWEEP_FILE if path.is_dir() else path
    return read_document(file, Sweep, SWEEP_SCHEMA, "a sweep", "run `mi-audit defend` with the option --sweep")
