"""Saved JSON that is one frozen dataclass: written canonically, read, and checked against it. Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from mi_audit.core.errors import ConfigError, NothingToAudit, StorageError

Document = TypeVar("Document")
UNREADABLE = (ValueError, RecursionError)  # what damaged or hostile JSON raises: no JSON, no UTF-8, nested without end


def document_text(content: object) -> str:
    """Canonical JSON: sorted keys, two spaces, no NaN, a newline at the end; equal contents give equal bytes.

    Raises:
        StorageError: A number is NaN or infinite, or a setting is of a type that JSON cannot hold.
    """
    try:
        return json.dumps(content, default=_plain, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"expected finite numbers and plain settings in a result, got one that is not: {error}"
        ) from error


def read_json(file: Path, name: str, advice: str) -> object:
    """The content of `file`, unchecked.

    Args:
        file: UTF-8 JSON.
        name: What it is called, with an article, such as `a sweep`.
        advice: What makes one, for the error when there is none.

    Raises:
        NothingToAudit: There is no such file.
        StorageError: It cannot be read, or is no JSON, which knows no NaN.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise NothingToAudit(f"expected {name} in {file}, got none; {advice}") from error
    except (OSError, *UNREADABLE) as error:
        readable = name.replace(" ", " readable ", 1)
        raise StorageError(f"expected {readable} in {file}, got {error}; repeat the command") from error


def checked(data: object, kind: type[Document], schema: str, name: str, file: Path) -> Document:
    """`data` as the dataclass `kind`; fields that a later minor version added are ignored.

    Args:
        data: What `read_json` read.
        kind: The dataclass that it must be.
        schema: Its version; the first figure must be the same.
        name: What it is called, as in `read_json`.
        file: Where it was, for errors.

    Raises:
        ConfigError: It was written by a version with another schema.
        StorageError: It does not follow the schema.
    """
    from pydantic import TypeAdapter, ValidationError

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
