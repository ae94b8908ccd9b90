"""Where settings come from: files of TOML, the environment, and the command line, each checked on its own."""

import difflib
import os
import pkgutil
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mi_audit import defenses
from mi_audit.audit.settings_gate import RuleTable, WaiverTable
from mi_audit.audit.settings_tables import OPEN, Settings, describe, flag_of, leaves, variable_of
from mi_audit.core.errors import ConfigError

Key = tuple[str, ...]
PROJECT_FILE = "mi-audit.toml"
LISTS: Mapping[str, Mapping[str, object]] = {"gate": RuleTable.model_fields, "waivers": WaiverTable.model_fields}
ELSEWHERE = ("MI_AUDIT_CONFIG", "MI_AUDIT_CHROMIUM", "MI_AUDIT_TEST_")  # read by other parts; a trailing _ is a prefix
REFERENCES = {
    ("model", "ref"),
    ("data", "private"),
    ("data", "public"),
    ("run", "evaluator"),
    ("run", "verifier"),
    ("run", "counterfactual"),
    ("defend", "pretrained"),
}
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")
TIMM_SOURCES = ("torch/", "tfds/", "hfds/", "hfids/", "wds/")


@dataclass(frozen=True, slots=True)
class Layer:
    """Checked settings from one place.

    Attributes:
        values: Value of every setting that this place gives, by key.
        origins: The same keys, with the place in words.
    """

    values: Mapping[Key, object]
    origins: Mapping[Key, str]


def find_project_file(start: Path) -> Path | None:
    """The nearest `mi-audit.toml`, or `pyproject.toml` with a [tool.mi-audit] table, from `start` up to the repository.

    Outside a repository only `start` itself is searched, so that nobody else's file in a parent folder takes effect.
    """
    folders = [start, *start.parents]
    root = next((i for i, folder in enumerate(folders) if (folder / ".git").exists()), 0)
    for folder in folders[: root + 1]:
        if (folder / PROJECT_FILE).is_file():
            return folder / PROJECT_FILE
        project = folder / "pyproject.toml"
        if project.is_file() and "mi-audit" in _read_toml(project).get("tool", {}):
            return project
    return None


def from_file(file: Path) -> Layer:
    """The settings in a TOML file, with relative paths taken from where the file is.

    Raises:
        ConfigError: The file is missing, is no TOML, or holds an unknown key or a wrong type.
    """
    document = _read_toml(file)
    nested = document.get("tool", {}).get("mi-audit", {}) if file.name == "pyproject.toml" else document
    values = dict(_flat(_checked(nested, str(file), _written)))
    here = file.parent.resolve() == Path.cwd()
    folder = _seen_from_here(file.parent)
    anchored = values if here else {key: _anchor(key, value, folder) for key, value in values.items()}
    return Layer(anchored, dict.fromkeys(values, str(file)))


def from_environment(variables: Mapping[str, str]) -> Layer:
    """The settings in `MI_AUDIT_*` variables.

    Raises:
        ConfigError: A variable is unknown or of a wrong type.
    """
    names = {variable_of(key): key for key in leaves()}
    given: dict[Key, object] = {}
    for name in sorted(name for name in variables if name.startswith("MI_AUDIT_")):
        if name in names:
            given[names[name]] = variables[name]
        elif not any(name == known or (known.endswith("_") and name.startswith(known)) for known in ELSEWHERE):
            raise ConfigError(f"expected a known environment variable, got {name}; {_suggest(name, names)}")
    values = dict(_flat(_checked(nest(given), "the environment", variable_of)))
    return Layer(values, {key: variable_of(key) for key in values})


def from_flags(flags: Mapping[Key, object], assignments: Iterable[str] = ()) -> Layer:
    """The settings given as options; options left out are None. `assignments` are the `--set a.b=value` texts.

    Raises:
        ConfigError: A value is of a wrong type, or an assignment is malformed.
    """
    given: dict[Key, object] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        key = _spelt_out(tuple(name.strip().split(".")))
        if not equals or len(key) < 2:
            raise ConfigError(
                f"expected --set TABLE.KEY=VALUE, got {text!r}; write for example --set attacks.gmi.steps=300"
            )
        given[key] = _parsed(value) if _is_open(key) else value
    given |= {key: value for key, value in flags.items() if value is not None}
    values = dict(_flat(_checked(nest(given), "the command line", flag_of)))
    return Layer(values, dict.fromkeys(values, "command line"))


def nest(values: Mapping[Key, object]) -> dict[str, Any]:
    """The tables that flat keys stand for."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        table = tree
        for name in key[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(
                    f"expected one value for {'.'.join(key[:-1])}, got a value and a table; remove one of them"
                )
        table[key[-1]] = value
    return tree


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"expected a file of settings, got {file}, which does not exist; run `mi-audit config init`"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"expected a readable file of settings, got {error.strerror} on {file}; check its permissions"
        ) from error
    except ValueError as error:
        raise ConfigError(f"expected TOML in {file}, got: {error}; correct that line") from error


def _checked(nested: Mapping[str, object], place: str, spelling: Any) -> dict[str, Any]:  # noqa: ANN401
    try:
        return Settings.model_validate(nested).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise ConfigError(_explain(error, place, spelling)) from error


def _explain(error: ValidationError, place: str, spelling: Any) -> str:  # noqa: ANN401
    unknown = [each for each in error.errors() if each["type"] == "extra_forbidden"]
    first = (unknown or error.errors())[0]
    key = tuple(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(key, place)
    named = tuple(part for part in key if not part.isdigit())
    wanted = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    hint = describe(named) or "see `mi-audit config init`"
    where = f"{spelling(named)} in {place}" if spelling is _written else spelling(named)
    if first["type"] == "missing":
        return f"expected {where}, got none; add it ({hint})"
    return f"expected {where} to be {wanted}, got {first['input']!r}; it means: {hint}"


def _unknown(key: Key, place: str) -> str:
    table, name = key[:-1], key[-1]
    known: Mapping[str, object] = (
        {leaf[-1]: None for leaf in leaves() if leaf[:-1] == table} if table else Settings.model_fields
    )
    if table and not known:
        known = LISTS.get(table[0], {})
    named = tuple(part for part in key if not part.isdigit())
    kind = f"a key of {_written(named).rpartition(' ')[0]}" if table else "a table"
    return f"expected {kind} in {place}, got {name!r}; {_suggest(name, known)}"


def _suggest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"


def _written(key: Key) -> str:
    if len(key) == 1:
        return key[0]
    table = ".".join(key[:-1])
    return f"[[{table}]] {key[-1]}" if table in LISTS else f"[{table}] {key[-1]}"


def _flat(tree: Mapping[str, object], start: Key = ()) -> Iterator[tuple[Key, object]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*start, name))
        else:
            yield (*start, name), value


def _spelt_out(key: Key) -> Key:
    """`bido.eps` is short for `defend.settings.bido.eps`; the names are those of files, so that nothing is imported."""
    files = {info.name.replace("_", "-") for info in pkgutil.iter_modules(defenses.__path__)}
    known = files | {point.name for point in entry_points(group="mi_audit.defenses")}
    return ("defend", "settings", *key) if key[0] in known else key


def _is_open(key: Key) -> bool:
    return any(key[: len(start)] == start for start in OPEN)


def _parsed(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a word without quotes


def _seen_from_here(folder: Path) -> Path:
    """`folder` relative to the working directory where one holds the other, so that no result names a home folder."""
    whole, here = folder.resolve(), Path.cwd()
    near = whole.is_relative_to(here) or here.is_relative_to(whole)
    return Path(os.path.relpath(whole, here)) if near else folder


def _shortened(path: Path) -> Path:
    """`path` relative to the working directory when it lies below it."""
    whole = Path(os.path.normpath(Path.cwd() / path))
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else path


def _anchor(key: Key, value: object, folder: Path) -> object:
    """`value` seen from the working directory, when it is a path relative to `folder`."""
    if isinstance(value, Path):
        return _shortened(folder / value.expanduser())
    if key not in REFERENCES or not isinstance(value, str):
        return value
    if value.startswith("local-dir:"):
        return "local-dir:" + str(_shortened(folder / Path(value.removeprefix("local-dir:")).expanduser()))
    if SCHEME.match(value) or value.startswith(TIMM_SOURCES):
        return value
    path = _shortened(folder / Path(value).expanduser())
    return str(path) if os.sep in value or "/" in value or path.exists() else value
