"""Whatever a run folder holds: an audit, a comparison, a sweep, or a profile of Fisher information. Needs no torch."""

import json
from pathlib import Path

from mi_audit.store.documents import UNREADABLE
from mi_audit.store.results import FISHER_FILE, RESULT_FILE, SWEEP_FILE, Saved, read_fisher, read_result, read_sweep

FILES = {"sweep": SWEEP_FILE, "fisher": FISHER_FILE}


def read_saved(path: Path) -> Saved:
    """What is kept in a folder or a file, whatever kind it is of.

    Raises:
        AuditError: As `read_result`.
    """
    kind = kind_of(path)
    return read_sweep(path) if kind == "sweep" else read_fisher(path) if kind == "fisher" else read_result(path)


def kind_of(path: Path) -> str:
    """`sweep`, `fisher`, or `result` for everything else, also for what cannot be read."""
    if path.is_dir():
        found = (kind for kind, name in FILES.items() if (path / name).is_file())
        return "result" if (path / RESULT_FILE).is_file() else next(found, "result")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *UNREADABLE):
        return "result"
    said = str(data.get("kind")) if isinstance(data, dict) else ""
    return said if said in FILES else "result"
