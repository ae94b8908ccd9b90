"""Settings of methods are finite: a comparison such as `weight <= 0` lets NaN and infinity through."""

import math
from dataclasses import fields
from typing import Any

from mi_audit.core.errors import ConfigError


def require_finite(settings: Any) -> None:  # noqa: ANN401
    """Refuse NaN and infinity in the fields of a dataclass, also inside of tuples.

    Args:
        settings: Called first in its `__post_init__`, so that ranges can be checked by comparisons.

    Raises:
        ConfigError: A number is not finite.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ConfigError(f"expected finite numbers as {each.name}, got {value}; correct it")
