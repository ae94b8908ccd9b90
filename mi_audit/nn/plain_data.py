"""Checks of settings that came out of a manifest: JSON may hold anything, and anybody can write it."""

import sys
from collections.abc import Mapping
from reprlib import repr as short

from mi_audit.core.errors import ConfigError


def integer(name: str, value: object) -> int:
    """`value` if it is a whole number. Raises ConfigError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"expected a whole number as {name}, got {short(value)}; correct it")
    return value


def whole(name: str, value: object) -> int:
    """`value` if it is a whole number from one. Raises ConfigError otherwise."""
    size = integer(name, value)
    if size < 1:
        raise ConfigError(f"expected a whole number from 1 as {name}, got {short(value)}; correct it")
    return size


def truth(name: str, value: object) -> bool:
    """`value` if it is true or false. Raises ConfigError otherwise."""
    if not isinstance(value, bool):
        raise ConfigError(f"expected true or false as {name}, got {short(value)}; correct it")
    return value


def number(name: str, value: object) -> float:
    """`value` if it is a finite number. Raises ConfigError otherwise."""
    if not isinstance(value, int | float) or not is_number(value) or not abs(value) <= sys.float_info.max:
        raise ConfigError(f"expected a finite number as {name}, got {short(value)}; correct it")
    return float(value)


def is_number(value: object) -> bool:
    """Whether `value` is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(name: str, values: object) -> Mapping[str, float]:
    """`values` if they are numbers by name. Raises ConfigError otherwise."""
    if not isinstance(values, Mapping) or not all(
        isinstance(key, str) and is_number(value) for key, value in values.items()
    ):
        raise ConfigError(f"expected numbers by name as {name}, got {short(values)}; correct it")
    return values
