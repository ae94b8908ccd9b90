"""Find methods by file: `attacks/brep_mi.py` is `brep-mi` on the command line. Nothing to register."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mi_audit.core.attack import Attack
from mi_audit.core.defense import Defense
from mi_audit.core.errors import ConfigError
from mi_audit.core.metric import Metric
from mi_audit.core.prior import PublicRecipe

T = TypeVar("T")


@cache
def attacks() -> Mapping[str, type[Attack[Any, Any]]]:
    """Every attack, by command-line name."""
    return _found(Attack, "attacks")  # type: ignore[type-abstract]


@cache
def defenses() -> Mapping[str, type[Defense]]:
    """Every defense, by command-line name."""
    return _found(Defense, "defenses")


@cache
def metrics() -> Mapping[str, type[Metric]]:
    """Every metric, by command-line name."""
    return _found(Metric, "metrics")  # type: ignore[type-abstract]


@cache
def priors() -> Mapping[str, type[PublicRecipe]]:
    """Every recipe of a prior or of surrogates, by command-line name."""
    return _found(PublicRecipe, "priors")  # type: ignore[type-abstract]


def pick(kind: str, table: Mapping[str, type[T]], name: str) -> type[T]:
    """The method called `name`. Raises ConfigError with a suggestion."""
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"run `mi-audit list {kind}s`"
        raise ConfigError(f"expected one of the {kind}s {', '.join(table)}, got {name!r}; {hint}")
    return table[name]


def build(kind: str, method: type[T], name: str, settings: Mapping[str, object]) -> T:
    """The frozen method with `settings`, converted to the types of its fields; the word `none` is None where that fits.

    Raises:
        ConfigError: A setting is unknown or does not fit its type or range.
    """
    known = [field.name for field in fields(method)]  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it knows {', '.join(known)}"
            raise ConfigError(f"expected a setting of the {kind} {name}, got {key!r}; {hint}")
    try:
        return TypeAdapter(method).validate_python(_without(method, settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise ConfigError(
            f"expected a valid {where} of the {kind} {name}, got {first['input']!r}: {first['msg']}; "
            f"see `mi-audit info {name}`"
        ) from error


def _without(method: type, settings: Mapping[str, object]) -> dict[str, object]:
    """The settings with None for the word `none`, which alone a command line and TOML can say; not among texts."""
    types = {name: get_args(kind) for name, kind in get_type_hints(method).items()}
    nothing = {name for name, kinds in types.items() if NoneType in kinds and str not in kinds}
    return {name: None if name in nothing and value == "none" else value for name, value in settings.items()}


def _found(contract: type[T], kind: str) -> dict[str, type[T]]:
    package = importlib.import_module(f"mi_audit.{kind}")
    named = dict(_shipped(contract, package.__name__, list(package.__path__)))
    for point in entry_points(group=f"mi_audit.{kind}"):
        if point.name in named:
            raise ConfigError(
                f"expected one {kind[:-1]} called {point.name!r}, got a second one in {point.value}; remove it"
            )
        named[point.name] = point.load()
    return named


def _shipped(contract: type[T], package: str, path: list[str]) -> Iterator[tuple[str, type[T]]]:
    for info in pkgutil.iter_modules(path, f"{package}."):
        module = importlib.import_module(info.name)
        concrete = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, contract)
            and value.__module__ == info.name
            and not inspect.isabstract(value)
        ]
        if len(concrete) != 1:
            raise ConfigError(f"expected one {contract.__name__} in {info.name}, got {len(concrete)}; split the file")
        yield info.name.rpartition(".")[2].replace("_", "-"), concrete[0]
