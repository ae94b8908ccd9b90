import math
from dataclasses import dataclass, fields
from typing import get_args

import pytest

from mi_audit.audit import registry
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite

METHODS = {**registry.attacks(), **registry.defenses(), **registry.priors()}


@dataclass
class Settings:
    weight: float | None = 1.0
    radii: tuple[float, ...] = (1.0, 2.0)
    steps: int = 10**400
    name: str = "nan"


def test_only_floats_can_be_infinite():
    require_finite(Settings())
    require_finite(Settings(weight=None))
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ConfigError, match="expected finite numbers as weight, got"):
            require_finite(Settings(weight=bad))
        with pytest.raises(ConfigError, match="expected finite numbers as radii, got"):
            require_finite(Settings(radii=(1.0, bad)))


def numbers(method):
    """Names of the settings that hold floats, and how many: 0 for one alone, else the length of the tuple."""
    for each in fields(method):
        kinds = (each.type, *get_args(each.type))
        if float in kinds:
            yield each.name, len(each.default) if isinstance(each.default, tuple) else 0


@pytest.mark.parametrize(
    ("name", "setting", "many"), [(name, *found) for name, method in METHODS.items() for found in numbers(method)]
)
def test_no_method_takes_a_number_that_is_not_finite(name, setting, many):
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ConfigError):
            METHODS[name](**{**METHODS[name].smoke, setting: (bad,) * many if many else bad})
