"""Saved results: canonical JSON out, checked dataclasses in. Needs no torch, so gating and reporting start at once."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mi_audit.core.errors import ConfigError, NothingToAudit, StorageError
from mi_audit.core.fisher import FisherReport
from mi_audit.core.report import SCHEMA_VERSION, AuditReport, Comparison
from mi_audit.store.files import write_atomic
from mi_audit.store.sweeps import SWEEP_FILE

if TYPE_CHECKING:
    from pydantic import TypeAdapter

RESULT_FILE = "result.json"
FISHER_FILE = "fisher.json"


def to_json(result: AuditReport | Comparison | FisherReport) -> str:
    """Canonical JSON: sorted keys, two spaces, no NaN, a newline at the end; equal results give equal bytes.

    Raises:
        StorageError: A number is NaN or infinite, or a setting is of a type that JSON cannot hold.
    """
    try:
        return json.dumps(result, default=_plain, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"expected finite numbers and plain settings in a result, got one that is not: {error}"
        ) from error


def write_result(path: Path, result: AuditReport | Comparison | FisherReport) -> None:
    """Write `result` as canonical JSON, all of it or nothing."""
    write_atomic(path, to_json(result).encode(errors="replace"))


def read_result(path: Path) -> AuditReport | Comparison:
    """Read a result from its file or from its run folder, and check it.

    Fields that a later minor version added are ignored.

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
    data = _read(file)
    kind = _kind(file, data)
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise StorageError(
            f"expected a result of schema {SCHEMA_VERSION} in {file}, got `{place}`: {first['msg']}; repeat the run"
        ) from error


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of both kinds of result."""
    document = _adapter("any").json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mi-audit result",
        "version": SCHEMA_VERSION,
        **document,
    }


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise NothingToAudit(
            f"expected a result file or a run folder, got {file}, which does not exist; run `mi-audit attack`"
        ) from error
    except OSError as error:
        raise StorageError(
            f"expected a readable result, got {error.strerror} on {file}; check its permissions"
        ) from error
    except ValueError as error:  # broken JSON and broken UTF-8
        raise StorageError(f"expected JSON in {file}, got {error}; the file is damaged, repeat the run") from error


def _sweep(path: Path) -> NothingToAudit:
    values = sorted(file.parent for file in (path if path.is_dir() else path.parent).glob(f"*/{RESULT_FILE}"))
    such = f", such as {values[0]}" if values else ""
    return NothingToAudit(f"expected one run, got the sweep {path}; give the run of one of its values{such}")


def _profile(path: Path) -> NothingToAudit:
    return NothingToAudit(
        f"expected an audit or a comparison, got a Fisher profile in {path}, which measures no leak; give a run of "
        "`mi-audit attack` or `mi-audit defend`"
    )


def _kind(file: Path, data: object) -> str:
    if isinstance(data, dict) and data.get("kind") == "sweep":
        raise _sweep(file)
    if isinstance(data, dict) and data.get("kind") == "fisher":
        raise _profile(file)
    if not isinstance(data, dict) or data.get("kind") not in ("audit", "comparison"):
        raise StorageError(
            f"expected an audit or a comparison in {file}, got something else; give the result.json of a run"
        )
    version = str(data.get("schema_version", "none"))
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise ConfigError(
            f"expected schema version {SCHEMA_VERSION.split('.')[0]}.x in {file}, got {version}; "
            "read it with the version of mi-audit that wrote it"
        )
    return str(data["kind"])


@cache
def _adapter(kind: str) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter({"audit": AuditReport, "comparison": Comparison}.get(kind, AuditReport | Comparison))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, PurePath):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} {value!r}")


def _refuse(name: str) -> float:
    raise ValueError(f"{name}, which JSON does not know")
