"""Settings in layers, from the command line down to the defaults, and the frozen plan they add up to. Free of torch."""

import difflib
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mi_audit.audit.plan import AttackPlan, DefendPlan, ModelPlan, Plan, RulePlan
from mi_audit.audit.settings_gate import decision_of, waivers_of, written_rule
from mi_audit.audit.settings_kinds import Table
from mi_audit.audit.settings_sources import (
    Key,
    Layer,
    find_project_file,
    from_environment,
    from_file,
    from_flags,
    nest,
)
from mi_audit.audit.settings_tables import Settings, describe, example, flag_of, leaves
from mi_audit.core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

PLACES = {
    ("run", "out"),
    ("run", "cache"),
    ("run", "device"),
    ("run", "devices"),
    ("run", "batch_size"),
    ("defend", "save"),
    ("waivers",),
}  # not in results
RECIPE = ("pretrained", "epochs", "lr", "batch_size", "augment")
RETRAINING = {("defend", name) for name in RECIPE}  # of counterfactual targets
IDLE = {("decision", name) for name in ("tau", "alpha", "sequential")}  # refused without --policy audit-v1


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings after all layers are merged.

    Attributes:
        settings: Complete and checked.
        origins: Where every value that is no default came from, in words.
        values: The values that are no defaults.
    """

    settings: Settings
    origins: Mapping[Key, str]
    values: Mapping[Key, object]

    def rows(self) -> Iterator[tuple[str, object, str]]:
        """Every setting as (dotted name, value, origin), for `config show`."""
        every = {**leaves(), **self.values}
        for key in sorted(every, key=lambda key: (list(Settings.model_fields).index(key[0]), key)):
            yield ".".join(key), every[key], self.origins.get(key, "default")


def resolve(
    flags: Mapping[Key, object] | None = None,
    assignments: Iterable[str] = (),
    *,
    config: Path | None = None,
    discover: bool = True,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Resolved:
    """Merge command line > environment > `config` > project file > defaults.

    Args:
        flags: Options by key; None means not given.
        assignments: Texts of `--set TABLE.KEY=VALUE`.
        config: File named by `--config` or by MI_AUDIT_CONFIG.
        discover: Look for a project file.
        environment: Variables; None takes the process's.
        folder: Where the search for a project file starts; None is the working directory.

    Raises:
        ConfigError: An unknown key or a wrong type in any layer; the message names the place.
    """
    variables = os.environ if environment is None else environment
    project = find_project_file((folder or Path.cwd()).resolve()) if discover else None
    named = config or (Path(variables["MI_AUDIT_CONFIG"]) if variables.get("MI_AUDIT_CONFIG") else None)
    layers = [from_file(file) for file in (project, named) if file is not None]
    layers += [from_environment(variables), from_flags(flags or {}, assignments)]
    return _merge(layers)


def _merge(layers: Iterable[Layer]) -> Resolved:
    values: dict[Key, object] = {}
    origins: dict[Key, str] = {}
    for layer in layers:
        values |= layer.values
        origins |= layer.origins
    return Resolved(Settings.model_validate(nest(values)), origins, values)


def select(terms: Iterable[str], tags: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """The attacks that `terms` name: names, `all`, `tag:TAG`, and `-NAME` or `-tag:TAG` to leave out.

    Args:
        terms: In the order wanted; only exclusions means all but these.
        tags: Tags of every attack there is, by name.

    Raises:
        ConfigError: A term names nothing, or nothing is left.
    """
    terms = tuple(terms)
    wanted = [term for term in terms if not term.startswith("-")] or ["all"]
    excluded = {name for term in terms if term.startswith("-") for name in _matching(term[1:], tags)}
    chosen = dict.fromkeys(name for term in wanted for name in _matching(term, tags))
    left = tuple(name for name in chosen if name not in excluded)
    if not left:
        raise ConfigError(
            f"expected at least one attack, got none from {','.join(terms)!r}; see `mi-audit list attacks`"
        )
    return left


def _matching(term: str, tags: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    if term == "all":
        return tuple(tags)
    known = {f"tag:{tag}" for own in tags.values() for tag in own} if term.startswith("tag:") else set(tags)
    if term not in known:
        close = difflib.get_close_matches(term, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see `mi-audit list attacks`"
        raise ConfigError(f"expected one of the attacks {', '.join(sorted(known))}, got {term!r}; {hint}")
    return tuple(name for name, own in tags.items() if name == term or term.removeprefix("tag:") in own)


def plan_of(
    resolved: Resolved,
    verb: str,
    tags: Callable[[], Mapping[str, Collection[str]]],
    *,
    allow_pickle: bool = False,
    fresh: bool = False,
) -> Plan:
    """The frozen plan of `mi-audit VERB`.

    Args:
        resolved: The merged settings.
        verb: `attack`, `defend`, or `generator`, which needs no model.
        tags: Gives the tags of every attack there is, by name; called last, because finding them takes seconds.
        allow_pickle: Load formats that can run code; only ever given for one run, so no file can switch it on.
        fresh: Ignore finished jobs; only ever given for one run.

    Raises:
        ConfigError: There is no model, or an attack or its table of settings is unknown.
    """
    settings = resolved.settings
    if settings.model.ref is None and verb != "generator":
        raise ConfigError("expected a model to audit, got none; give MODEL, or ref under [model] in mi-audit.toml")
    known = tags()
    for name in settings.attacks:
        _matching(name, known)
    own = settings.attacks
    return Plan(
        model=ModelPlan(**settings.model.model_dump() | {"ref": settings.model.ref or ""}, allow_pickle=allow_pickle),
        **settings.data.model_dump(),
        **settings.run.model_dump(exclude={"attacks", "metrics"}),
        attacks=tuple(AttackPlan(name=n, settings=own.get(n, {})) for n in select(settings.run.attacks, known)),
        metrics=settings.run.metrics,
        prior_settings=settings.priors,
        fresh=fresh,
        rules=rules_of(settings),
        baseline=settings.baseline.file,
        max_regression=settings.baseline.max_regression,
        decision=decision_of(settings.decision, resolved.origins),
        waivers=waivers_of(settings.waivers, resolved.origins.get(("waivers",), "")),
        defend=DefendPlan(**settings.defend.model_dump()),
        command=command_line(resolved, verb, allow_pickle=allow_pickle),
    )


def rules_of(settings: Settings) -> tuple[RulePlan, ...]:
    """The gate's rules."""
    return tuple(RulePlan(id=rule.id, when=rule.when) for rule in settings.gate)


def command_line(resolved: Resolved, verb: str, *, allow_pickle: bool = False) -> str:
    """A command that asks for the same result, whatever layers it came from; says nothing of folders and devices."""
    words = ["mi-audit", verb]
    retraining = RETRAINING if verb == "attack" and "counterfactual" in resolved.settings.run.controls else set()
    if resolved.settings.model.ref is not None:
        words.append(resolved.settings.model.ref)
    idle = IDLE if resolved.settings.decision.policy != "audit-v1" else set()
    for key, value in sorted(resolved.values.items()):
        if (
            key not in PLACES | idle
            and key not in (("model", "ref"), ("version",))
            and (verb == "defend" or key in retraining or key[0] != "defend")
        ):
            words += _option(key, value) if key not in retraining else ["--set", f"{'.'.join(key)}={value}"]
    return shlex.join([*words, *(["--allow-pickle"] if allow_pickle else [])])


def _option(key: Key, value: object) -> list[str]:
    if key == ("gate",) and isinstance(value, list | tuple):
        return [word for place, rule in enumerate(value, 1) for word in ("--fail-on", written_rule(place, **rule))]
    flag, _, name = flag_of(key).partition(" ")
    if name:
        return [flag, f"{name}={_toml(value)}"]
    if isinstance(value, bool):
        return [flag] if value else [flag.replace("--", "--no-", 1)]
    return [flag, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values."""
    return _adapter().dump_python(plan, mode="json")


def plan_from_json(data: Mapping[str, object]) -> Plan:
    """The plan that `plan_to_json` wrote, also before `auto` was a batch size and null stood for it.

    Raises:
        ConfigError: The data are of another version or damaged.
    """
    from pydantic import ValidationError

    known = {**data, "batch_size": "auto"} if data.get("batch_size", "auto") is None else dict(data)
    try:
        return _adapter().validate_python(known)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"expected a plan of this version, got {place}: {first['msg']}; re-type the command"
        ) from error


@cache
def _adapter() -> "TypeAdapter[Plan]":
    from pydantic import TypeAdapter

    return TypeAdapter(Plan)


def template() -> str:
    """A commented file of settings: as it stands it changes nothing, and every line of it may be uncommented."""
    lines = [
        "# Settings of mi-audit. Paths are relative to this file. Precedence: command line > environment MI_AUDIT_* >",
        "# --config FILE > this file > defaults. `mi-audit config show` prints what is in force, and why.",
        "",
        "version = 1",
    ]
    for name, table in Settings():
        if isinstance(table, Table):
            lines += ["", f"[{name}]  # {(type(table).__doc__ or '').strip()}"]
            for key, default in leaves().items():
                if key[0] == name:
                    shown = example(key) if default is None else default
                    lines += [f"# {key[1]} = {_toml(shown)}".ljust(44) + f"  # {describe(key)}"]
    return "\n".join([*lines, "", *_OPEN_TABLES]) + "\n"


_OPEN_TABLES = (
    "# [attacks.gmi]                               # settings of one attack; see `mi-audit info gmi`",
    "# [priors.gmi-gan]                            # settings of one prior; see `mi-audit info gmi-gan`",
    "# [defend.settings.bido]                      # settings of one defense; see `mi-audit info bido`",
    "",
    "# [[gate]]                                    # a condition on which `mi-audit` exits with 1; any number of them",
    '# id = "MI001"',
    '# when = "attack_acc1 > 0.10"',
    "",
    "# [[waivers]]                                 # a failing rule that somebody answers for; never beside the model",
    '# id = "MI001"',
    f'# model_sha256 = "{"0" * 64}"',
    "# expires = 2027-01-31",
    '# reason = "accepted by J. Doe"',
)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    if isinstance(value, int | float):
        return repr(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
