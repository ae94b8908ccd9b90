"""Saved sweeps: canonical JSON out, checked dataclasses in. Needs no torch."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mi_audit.core.errors import ConfigError, NothingToAudit, StorageError
from mi_audit.core.sweep import SWEEP_SCHEMA, Sweep
from mi_audit.store.files import write_atomic

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SWEEP_FILE = "sweep.json"


def sweep_to_json(sweep: Sweep) -> str:
    """Canonical JSON: sorted keys, two spaces, no NaN, a newline at the end; equal sweeps give equal bytes."""
    return json.dumps(asdict(sweep), sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_sweep(path: Path, sweep: Sweep) -> None:
    """Write `sweep` as canonical JSON, all of it or nothing."""
    write_atomic(path, sweep_to_json(sweep).encode(errors="replace"))


def read_sweep(path: Path) -> Sweep:
    """Read a sweep from its file or its folder, and check it.

    Raises:
        NothingToAudit: There is no sweep at `path`.
        ConfigError: It was written by a version with another schema.
        StorageError: It cannot be read, or does not follow the schema.
    """
    from pydantic import ValidationError

    file = path / SWEEP_FILE if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NothingToAudit(
            f"expected a sweep in {file}, got none; run `mi-audit defend` with the option --sweep"
        ) from error
    except (OSError, ValueError) as error:
        raise StorageError(f"expected a readable sweep in {file}, got {error}; repeat the command") from error
    version = str(data.get("schema_version", "none")) if isinstance(data, dict) else "none"
    if version.split(".")[0] != SWEEP_SCHEMA.split(".")[0]:
        raise ConfigError(
            f"expected a sweep of schema {SWEEP_SCHEMA.split('.')[0]}.x in {file}, got {version}; "
            "read it with the version of mi-audit that wrote it"
        )
    try:
        return _adapter().validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise StorageError(
            f"expected a sweep of schema {SWEEP_SCHEMA} in {file}, got `{place}`: {first['msg']}; repeat the command"
        ) from error


@cache
def _adapter() -> "TypeAdapter[Sweep]":
    from pydantic import TypeAdapter

    return TypeAdapter(Sweep)
