"""Saved results: canonical JSON out, checked dataclasses in. Needs no torch, so gating and reporting start at once."""

from pathlib import Path
from typing import Any

from mi_audit.core.errors import NothingToAudit, StorageError
from mi_audit.core.fisher import FISHER_SCHEMA, FisherReport
from mi_audit.core.report import SCHEMA_VERSION, AuditReport, Comparison
from mi_audit.core.sweep import SWEEP_SCHEMA, Sweep
from mi_audit.store.documents import checked, document_text, read_json
from mi_audit.store.files import write_atomic

RESULT_FILE = "result.json"
SWEEP_FILE = "sweep.json"
FISHER_FILE = "fisher.json"
Saved = AuditReport | Comparison | Sweep | FisherReport


def to_json(result: Saved) -> str:
    """Canonical JSON. Raises StorageError, as `document_text`."""
    return document_text(result)


def write_result(path: Path, result: Saved) -> None:
    """Write `result` as canonical JSON, all of it or nothing. Raises StorageError."""
    write_atomic(path, to_json(result).encode(errors="replace"))


def read_result(path: Path) -> AuditReport | Comparison:
    """Read a result from its file or from its run folder, and check it.

    Raises:
        NothingToAudit: There is no result at `path`.
        ConfigError: It was written by a version with another schema.
        StorageError: It cannot be read, is no JSON, or does not follow the schema.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    if not file.exists() and (path / SWEEP_FILE).is_file():
        raise _sweep(path)
    if not file.exists() and (path / FISHER_FILE).is_file():
        raise _profile(path)
    data = read_json(file, "a result file or a run folder", "run `mi-audit attack`")
    return checked(data, _kind(file, data), SCHEMA_VERSION, "a result", file)


def read_sweep(path: Path) -> Sweep:
    """Read a sweep from its file or its folder, and check it. Raises what `read_result` raises."""
    file = path / SWEEP_FILE if path.is_dir() else path
    data = read_json(file, "a sweep", "run `mi-audit defend` with the option --sweep")
    return checked(data, Sweep, SWEEP_SCHEMA, "a sweep", file)


def read_fisher(path: Path) -> FisherReport:
    """Read a profile from its file or its folder, and check it. Raises what `read_result` raises."""
    file = path / FISHER_FILE if path.is_dir() else path
    data = read_json(file, "a Fisher profile", "run `mi-audit fisher`")
    return checked(data, FisherReport, FISHER_SCHEMA, "a Fisher profile", file)


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of both kinds of result."""
    from pydantic import TypeAdapter

    document = TypeAdapter[Any](AuditReport | Comparison).json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mi-audit result",
        "version": SCHEMA_VERSION,
        **document,
    }


def _sweep(path: Path) -> NothingToAudit:
    values = sorted(file.parent for file in (path if path.is_dir() else path.parent).glob(f"*/{RESULT_FILE}"))
    such = f", such as {values[0]}" if values else ""
    return NothingToAudit(f"expected one run, got the sweep {path}; give the run of one of its values{such}")


def _profile(path: Path) -> NothingToAudit:
    return NothingToAudit(
        f"expected an audit or a comparison, got a Fisher profile in {path}, which measures no leak; give a run of "
        "`mi-audit attack` or `mi-audit defend`"
    )


def _kind(file: Path, data: object) -> type[AuditReport | Comparison]:
    said = data.get("kind") if isinstance(data, dict) else None
    if said == "sweep":
        raise _sweep(file)
    if said == "fisher":
        raise _profile(file)
    if said not in ("audit", "comparison"):
        raise StorageError(
            f"expected an audit or a comparison in {file}, got something else; give the result.json of a run"
        )
    return AuditReport if said == "audit" else Comparison
