"""What can be named on the command line: every attack, defense, metric and prior, as plain data."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal

from mi_audit.audit import registry
from mi_audit.audit.adaptive import options_for
from mi_audit.audit.composition import compose
from mi_audit.audit.plan import COMBINATIONS
from mi_audit.core.errors import ConfigError
from mi_audit.core.paper import Paper
from mi_audit.core.prior import SurrogateRecipe

Kind = Literal["attacks", "defenses", "metrics", "priors"]
Entry = dict[str, Any]
KINDS: tuple[Kind, ...] = ("attacks", "defenses", "metrics", "priors")


def entries(kind: Kind) -> tuple[Entry, ...]:
    """One flat row per method of `kind`; all have name, access, prior, paper, summary and settings."""
    rows = [_entry(kind, name, method) for name, method in _table(kind).items()]
    return tuple(sorted(rows + _combinations(), key=lambda row: row["name"]) if kind == "defenses" else rows)


def describe(name: str) -> Entry:
    """The row of the method called `name`, of whatever kind; `KIND:NAME` when two kinds share a name.

    Raises:
        ConfigError: Nothing is called that; the message has a suggestion.
    """
    kind, colon, short = name.rpartition(":")
    for row in _combinations():
        if short == row["name"] and (not colon or "defenses".startswith(kind)):
            return row
    kinds = [known for known in KINDS if not colon or known.startswith(kind)]
    every = {found: (known, method) for known in reversed(kinds) for found, method in _table(known).items()}
    if short not in every:
        close = difflib.get_close_matches(short, every, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see `mi-audit list attacks`"
        raise ConfigError(f"expected the name of an attack, a defense, a metric or a prior, got {name!r}; {hint}")
    return _described(*every[short], short)


def _described(kind: Kind, method: type[Any], name: str) -> Entry:
    return _entry(kind, name, method) | {"description": inspect.getdoc(method) or "", **_particulars(method)}


def attack_tags() -> Mapping[str, frozenset[str]]:
    """What `tag:` may name, for every attack: its access, `black-box`, and its prior."""
    return {name: _tags(method) for name, method in registry.attacks().items()}


def markdown() -> str:
    """The table of attacks and defenses in the README."""
    lines = ["| attack | access | prior | paper |", "|---|---|---|---|"]
    lines += [f"| `{e['name']}` | {e['access']} | `{e['prior']}` | {_link(e)} |" for e in entries("attacks")]
    lines += ["", "| defense | kind | what it does | paper |", "|---|---|---|---|"]
    lines += [f"| `{e['name']}` | {e['kind']} | {e['summary']} | {_link(e)} |" for e in entries("defenses")]
    lines += ["", "| metric | measurements | what it says |", "|---|---|---|"]
    lines += [
        f"| `{e['name']}` | {', '.join(f'`{m}`' for m in e['measures'])} | {e['summary']} |" for e in entries("metrics")
    ]
    return "\n".join(lines) + "\n"


def _table(kind: Kind) -> Mapping[str, type[Any]]:
    find: Callable[[], Mapping[str, type[Any]]] = getattr(registry, kind)
    return find()


def _entry(kind: Kind, name: str, method: type[Any]) -> Entry:
    paper = getattr(method, "paper", None)
    entry: Entry = {
        "name": name,
        "type": kind.removesuffix("s"),
        "access": None,
        "prior": None,
        "paper": str(paper) if paper else None,
        "url": paper.url if isinstance(paper, Paper) else None,
        "cite": f"{paper.authors}, {paper.venue}" if isinstance(paper, Paper) else "",
        "summary": _summary(method),
        "settings": {field.name: _default(field) for field in fields(method)},
    }
    options = {"adaptive_options": options_for(name)} if kind == "defenses" else {}
    return entry | _OF_KIND[kind](method) | options


def _attack(method: type[Any]) -> Entry:
    access, prior = method.threat_model()
    tags = sorted(_tags(method))
    return {
        "access": str(access.access),
        "prior": method.prior,
        "knowledge": prior.__name__,
        "cost": method.cost,
        "tags": tags,
    }


def _defense(method: type[Any]) -> Entry:
    return {
        "kind": method.kind,
        "slots": [slot.name.lower() for slot in sorted(method.slots)],
        "adaptive": method.adaptive,
        "caution": method.caution,
        "needs_public_init": method.needs_public_init,
        "not with": sorted(method.excludes),
    }


def _combinations() -> list[Entry]:
    """Defenses that were published as a combination of others: a row each, with the settings of every part."""
    rows = []
    for name, parts in COMBINATIONS.items():
        made = compose(name, {})
        rows_of = {part: _described("defenses", registry.defenses()[part], part) for part in parts}
        named = {
            key: {f"{part}.{field}": value for part, row in rows_of.items() for field, value in row[key].items()}
            for key in ("settings", "help")
        }
        rows.append(
            _entry("defenses", name, registry.defenses()[parts[0]])
            | named
            | {
                "kind": made.kind,
                "adaptive": made.adaptive,
                "adaptive_options": options_for(made.method),
                "caution": " ".join(made.cautions),
                "summary": f"Both {' and '.join(parts)}.",
                "description": f"The same as --method {made.method}.",
                "slots": [slot for row in rows_of.values() for slot in row["slots"]],
            }
        )
    return rows


def _metric(method: type[Any]) -> Entry:
    return {"measures": list(method.names), "unit": method.unit, "summary": method.summary}


def _prior(method: type[Any]) -> Entry:
    makes = "surrogates" if issubclass(method, SurrogateRecipe) else "prior"
    return {"access": "asks the target" if method.needs_target else None, "makes": makes}


_OF_KIND: Mapping[Kind, Callable[[type[Any]], Entry]] = {
    "attacks": _attack,
    "defenses": _defense,
    "metrics": _metric,
    "priors": _prior,
}


def _tags(method: type[Any]) -> frozenset[str]:
    access = str(method.threat_model()[0].access)
    return frozenset({access, method.prior} | ({"black-box"} if access != "white-box" else set()))


def _particulars(method: type[Any]) -> Entry:
    names = ("quick", "smoke", "deviations", "version")
    values = {name: getattr(method, name) for name in names if hasattr(method, name)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()} | {
        "help": _attribute_help(inspect.getdoc(method) or "")
    }


def _attribute_help(text: str) -> dict[str, str]:
    """The `Attributes:` section of a docstring, by name."""
    section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    names: tuple[str, ...] = ()
    for line in section.splitlines():
        if start := re.match(r" {4}([\w, ]+): (.*)", line):
            names = tuple(name.strip() for name in start[1].split(","))
            found |= dict.fromkeys(names, start[2].strip())
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _default(field: Field[Any]) -> object:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _summary(method: type[Any]) -> str:
    """The first sentence of the method's file, without the name in front."""
    text = (inspect.getdoc(inspect.getmodule(method)) or "").partition("\n\n")[0].replace("\n", " ")
    name, colon, rest = text.partition(": ")
    return rest[:1].upper() + rest[1:] if colon and " " not in name else text


def _link(entry: Entry) -> str:
    return f"[{entry['cite']}]({entry['url']})"
