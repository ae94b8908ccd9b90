"""Which values of which setting a sweep tries, and how a value gets into the plan. Free of torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mi_audit.audit.plan import FREEZING, DefendPlan, parts_of
from mi_audit.core.errors import ConfigError

Value = str | int | float | bool
TRAINING = {"epochs": int, "lr": float, "batch_size": int}  # fields of the plan that train the twin, too
GRIDS: Mapping[str, tuple[str, ...]] = {  # tried when a sweep names a setting without values
    "freeze": ("stage:3", "60%", "80%", "90%"),
    "mid.weight": ("0.003", "0.01", "0.03", "0.1"),
    "bido.lambda_x": ("0.01", "0.05", "0.1"),
    "bido.lambda_y": ("0.25", "0.5", "1"),
    "ssf.k": ("0", "0.1", "0.2", "0.4", "0.6"),
    "loft.rank": ("20", "35", "50", "75", "100", "150"),
    "negls.alpha": ("-0.01", "-0.05", "-0.1"),
    "ca.power": ("3", "4", "8"),
    "midre.high": ("0.2", "0.4", "0.8"),
}
EXAMPLE = "write for example --sweep freeze=0%,40%,80% or --sweep bido.lambda_x=0.01,0.05"


@dataclass(frozen=True, slots=True)
class Grid:
    """A setting and the values to try.

    Attributes:
        parameter: `method`, `freeze`, `epochs`, `lr`, `batch_size`, or a hyper-parameter of the method: `lambda_x`,
            or `bido.lambda_x` where several methods are combined.
        values: As the user wrote them, each once.
    """

    parameter: str
    values: tuple[str, ...]

    @property
    def folders(self) -> tuple[str, ...]:
        """A folder name for every value: letters, digits, `%`, `.`, `+` and `-`, none of them twice."""
        names: list[str] = []
        for value in self.values:
            plain = re.sub(r"[^\w.+%-]+", "-", re.sub(r"^-", "minus-", re.sub(r"^\.", "0.", value)))
            first = plain.strip("-") or "value"
            tries = (first, *(f"{first}-{number}" for number in range(2, len(self.values) + 2)))
            taken = {name.casefold() for name in names}  # some disks do not tell `a` from `A`
            names.append(next(name for name in tries if name.casefold() not in taken))
        return tuple(names)

    @property
    def changes_the_twin(self) -> bool:
        """Whether the undefended twin is trained otherwise for every value."""
        return self.parameter in TRAINING


def read_grid(text: str, method: str) -> Grid:
    """The grid that `--sweep NAME=VALUE,VALUE` or `--sweep NAME` asks for.

    Args:
        text: What the user wrote.
        method: The defense, or several joined by `+`.

    Raises:
        ConfigError: There is no name, no value, a value twice, or no usual grid for the name.
    """
    name, given, listed = text.partition("=")
    parts, parameter = method.split("+"), name.strip().replace("tldmi.freeze", "freeze")
    if not re.fullmatch(r"[A-Za-z][\w-]*(\.\w+)?", parameter):
        raise ConfigError(f"expected --sweep NAME=VALUE,VALUE, got {text!r}; {EXAMPLE}")
    if "." not in parameter and not is_own_field(parameter) and len(parts) > 1:
        raise ConfigError(
            f"expected the name of a method before the setting {parameter!r}, as in {parts[0]}.{parameter}"
        )
    values = _split(listed) if given else _usual(parameter, method)
    if not values:
        raise ConfigError(f"expected values after --sweep {parameter}=, got none; {EXAMPLE}")
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise ConfigError(f"expected every value of --sweep once, got {twice} twice; remove one")
    return Grid(parameter, values)


def is_own_field(parameter: str) -> bool:
    """Whether the setting is one of the plan rather than of a method."""
    return parameter in ("method", "freeze") or parameter in TRAINING


def substituted(defend: DefendPlan, parameter: str, text: str) -> DefendPlan:
    """The plan of a defense with one value in the place of the swept setting: the only place that knows where it goes.

    Settings of a single method lie flat; those of combined methods lie under the name of their part.
    """
    once = replace(defend, sweep=None, save=None)
    part, _, name = parameter.rpartition(".")
    if parameter == "method":
        named = {*parts_of(text), *([FREEZING] if defend.freeze else [])}
        others = {part for part, own in defend.settings.items() if isinstance(own, Mapping)} - named
        return replace(once, method=text, settings={k: v for k, v in defend.settings.items() if k not in others})
    if is_own_field(parameter):
        kind = TRAINING.get(name, str)
        try:
            return replace(once, **{name: kind(text)})
        except ValueError as error:
            wanted = "a whole number" if kind is int else "a number"
            raise ConfigError(f"expected {wanted} for --sweep {parameter}, got {text!r}; {EXAMPLE}") from error
    settings = dict(defend.settings)
    own = settings.get(part)
    if part and (part != defend.method or isinstance(own, Mapping)):
        return replace(
            once, settings=settings | {part: {**(own if isinstance(own, Mapping) else {}), name: value_of(text)}}
        )
    return replace(once, settings=settings | {name: value_of(text)})


def value_of(text: str) -> Value:
    """The number or truth value that `text` spells, else the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def option_of(parameter: str, text: str) -> tuple[str, ...]:
    """The words that ask for this value alone on a command line of `defend`."""
    if is_own_field(parameter):
        return ("--train-batch-size" if parameter == "batch_size" else f"--{parameter}", text)
    return ("--set", f"defend.settings.{parameter}={text}")


def _split(listed: str) -> tuple[str, ...]:
    """At commas outside brackets; blanks around values do not count."""
    return tuple(part for one in re.split(r",(?![^\[]*\])", listed) if (part := one.strip()))


def _usual(parameter: str, method: str) -> tuple[str, ...]:
    for name in (parameter, f"{method}.{parameter}"):
        if name in GRIDS:
            return GRIDS[name]
    known = ", ".join(GRIDS)
    raise ConfigError(f"expected values for --sweep {parameter}, got none; usual values are known of {known}")
