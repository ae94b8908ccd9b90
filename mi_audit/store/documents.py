"""Saved JSON that is one frozen dataclass: read, and checked against it. Needs no torch."""

import json
from pathlib import Path
from typing import TypeVar

from mi_audit.core.errors import ConfigError, NothingToAudit, StorageError

Document = TypeVar("Document")


def read_document(file: Path, kind: type[Document], schema: str, name: str, advice: str) -> Document:
    """The content of `file`.

    Args:
        file: UTF-8 JSON.
        kind: The dataclass that it must be.
        schema: Its version; the first figure must be the same.
        name: What it is called, with an article, such as `a sweep`.
        advice: What makes one, for the error when there is none.

    Raises:
        NothingToAudit: There is no such file.
        ConfigError: It was written by a version with another schema.
        StorageError: It cannot be read, or does not follow the schema.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NothingToAudit(f"expected {name} in {file}, got none; {advice}") from error
    except (OSError, ValueError) as error:
        readable = name.replace(" ", " readable ", 1)
        raise StorageError(f"expected {readable} in {file}, got {error}; repeat the command") from error
    version, main = str(data.get("schema_version", "none")) if isinstance(data, dict) else "none", schema.split(".")[0]
    if version.split(".")[0] != main:
        raise ConfigError(
            f"expected {name} of schema {main}.x in {file}, got {version}; "
            "read it with the version of mi-audit that wrote it"
        )
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise StorageError(
            f"expected {name} of schema {schema} in {file}, got `{place}`: {first['msg']}; repeat the command"
        ) from error
