"""Whatever a run folder holds: an audit, a comparison, a sweep, or a profile of Fisher information. Needs no torch."""

import json
from pathlib import Path

from mi_audit.core.fisher import FISHER_SCHEMA, FisherReport
from mi_audit.core.report import AuditReport, Comparison
from mi_audit.core.sweep import Sweep
from mi_audit.store.documents import read_document
from mi_audit.store.results import FISHER_FILE, RESULT_FILE, read_result
from mi_audit.store.sweeps import SWEEP_FILE, read_sweep

Saved = AuditReport | Comparison | Sweep | FisherReport
FILES = {"sweep": SWEEP_FILE, "fisher": FISHER_FILE}


def read_saved(path: Path) -> Saved:
    """What is kept in a folder or a file, whatever kind it is of.

    Raises:
        AuditError: As `read_result` and `read_document`.
    """
    kind = kind_of(path)
    return read_sweep(path) if kind == "sweep" else read_fisher(path) if kind == "fisher" else read_result(path)


def read_fisher(path: Path) -> FisherReport:
    """Read a profile from its file or its folder, and check it. Raises what `read_document` raises."""
    file = path / FISHER_FILE if path.is_dir() else path
    return read_document(file, FisherReport, FISHER_SCHEMA, "a Fisher profile", "run `mi-audit fisher`")


def kind_of(path: Path) -> str:
    """`sweep`, `fisher`, or `result` for everything else, also for what cannot be read."""
    if path.is_dir():
        found = (kind for kind, name in FILES.items() if (path / name).is_file())
        return "result" if (path / RESULT_FILE).is_file() else next(found, "result")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "result"
    said = str(data.get("kind")) if isinstance(data, dict) else ""
    return said if said in FILES else "result"
