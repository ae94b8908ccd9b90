"""The tables of `mi-audit.toml` about the gate: what to fail on, how to decide, and who answers for a failure."""

import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mi_audit.audit.plan import DecisionPlan, WaiverPlan
from mi_audit.audit.settings_kinds import Chance, Share, Table
from mi_audit.core.errors import ConfigError

NAMED = re.compile(r"([^][:;<>=\s](?:[^][:;<>=]*[^][:;<>=\s])?):\s+(.+)", re.DOTALL)  # no condition begins so


class RuleTable(Table):
    """One condition on which the gate fails."""

    id: str = Field(description="short name shown in reports", examples=["MI001"])
    when: str = Field(description="the condition to fail on", examples=["attack_acc1 > 0.10"])


class BaselineTable(Table):
    """An earlier result that this one must not be worse than."""

    file: Path | None = Field(
        default=None, description="earlier result.json or run folder to compare with", examples=["main/result.json"]
    )
    max_regression: Share | None = Field(
        default=None, description="largest allowed rise of attack accuracy over the baseline", examples=[0.02]
    )


class DecisionTable(Table):
    """How many exposed people are too many, and how sure the gate has to be."""

    policy: Literal["rules", "audit-v1"] = Field(
        default="rules",
        description="rules judges by the conditions alone, audit-v1 by an exact bound on identity exposure as well",
    )
    tau: Chance = Field(default=0.10, description="largest share of exposed people that audit-v1 tolerates")
    alpha: Chance = Field(default=0.05, description="error rate of each bound of audit-v1")
    sequential: bool = Field(
        default=False, description="look at people in a hashed order and decide as soon as enough were seen"
    )


class WaiverTable(Table):
    """A failing rule that somebody answers for; listed in every report."""

    id: str = Field(description="rule it excuses", examples=["MI001"])
    model_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = Field(
        description="hash of the only weights it holds for, as reports show it", examples=["0" * 64]
    )
    expires: date = Field(description="last day it holds", examples=["2027-01-31"])
    reason: Annotated[str, Field(min_length=1)] = Field(
        description="why, and who said so", examples=["accepted by J. Doe"]
    )


def named_rules(value: object) -> object:
    """Conditions, separated by semicolons in a text, as rules: `ID: CONDITION`; without an ID they get a number."""
    texts = value.split(";") if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    parts = [(place, NAMED.fullmatch(text.strip()), text.strip()) for place, text in enumerate(texts, 1)]
    return [
        {"id": named[1], "when": named[2]} if named else {"id": f"rule-{place}", "when": text}
        for place, named, text in parts
    ]


def written_rule(place: int, id: str, when: str) -> str:
    """A rule as `named_rules` reads it back at `place` from 1, with its ID where it was given one."""
    named = f"{id}: {when}"
    found = NAMED.fullmatch(named)
    return named if id != f"rule-{place}" and found and found[1] == id else when


Rules = Annotated[tuple[RuleTable, ...], BeforeValidator(named_rules)]


def decision_of(table: DecisionTable, origins: Mapping[tuple[str, ...], str]) -> DecisionPlan:
    """How exposure is decided.

    Raises:
        ConfigError: The command line sets what only `audit-v1` heeds, under another policy.
    """
    idle = [name for name in ("tau", "alpha", "sequential") if origins.get(("decision", name)) == "command line"]
    if table.policy != "audit-v1" and idle:
        raise ConfigError(
            f"expected --policy audit-v1 beside its {' and '.join(idle)}, got policy {table.policy!r}; add it"
        )
    return DecisionPlan(**table.model_dump())


def waivers_of(tables: Sequence[WaiverTable], source: str) -> tuple[WaiverPlan, ...]:
    """The waivers, with the file they were read from."""
    return tuple(WaiverPlan(**table.model_dump(), source=source) for table in tables)
