"""The language of gate rules: one comparison of sums of measurements and numbers, parsed without ever being evaluated.

rule      := sum OP sum                 OP: > >= < <=
sum       := term (+|-) term ...
term      := NUMBER | [SOURCE.]METRIC[ATTACK]
SOURCE    := control | baseline         without one: the audited model
[ATTACK]  may be left out: the rule then has to hold for every attack, so the worst one decides
"""

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mi_audit.core.errors import ConfigError

Operator = Literal[">", ">=", "<", "<="]
Source = Literal["audit", "control", "baseline"]

LONGEST = 300  # characters
OPERATORS: dict[type[ast.cmpop], Operator] = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<="}


@dataclass(frozen=True, slots=True)
class Reference:
    """A measurement of an attack; without `attack` it stands for each attack in turn."""

    source: Source
    metric: str
    attack: str | None

    def __str__(self) -> str:
        prefix = "" if self.source == "audit" else f"{self.source}."
        return f"{prefix}{self.metric}" + (f"[{self.attack}]" if self.attack else "")


@dataclass(frozen=True, slots=True)
class Sum:
    """`left + right` for `sign` 1, `left - right` for `sign` -1."""

    left: "Term"
    right: "Term"
    sign: Literal[1, -1]

    def __str__(self) -> str:
        return f"{self.left} {'+' if self.sign == 1 else '-'} {self.right}"


Term = Reference | Sum | float


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition to fail on: `left operator right`."""

    left: Term
    operator: Operator
    right: Term

    def references(self) -> tuple[Reference, ...]:
        """The measurements it names, from left to right."""
        return (*_references(self.left), *_references(self.right))


def parse(when: str) -> Condition:
    """Read a rule.

    Raises:
        ConfigError: It is not one comparison of measurements and numbers.
    """
    if len(when) > LONGEST:
        raise ConfigError(f"expected a gate rule of at most {LONGEST} characters, got {len(when)}; write several rules")
    try:
        tree = ast.parse(when.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise _refusal(when, "text that cannot be read") from error
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1:
        raise _refusal(when, "no single comparison")
    operator = OPERATORS.get(type(tree.ops[0]))
    if operator is None:
        raise _refusal(when, f"the operator {type(tree.ops[0]).__name__}")
    condition = Condition(_term(tree.left, when), operator, _term(tree.comparators[0], when))
    if not condition.references():
        raise _refusal(when, "no measurement")
    return condition


def _refusal(when: str, got: str) -> ConfigError:
    return ConfigError(
        f"expected a gate rule such as `attack_acc1 > 0.10` or `attack_acc1[ppa] - control.attack_acc1 > 0.05`, "
        f"got {got} in {when!r}; write one comparison (> >= < <=) per rule"
    )


def _term(node: ast.expr, when: str) -> Term:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as inner):
            number = _term(inner, when)
            return -number if isinstance(number, float) else number
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as sign, right=right):
            return Sum(_term(left, when), _term(right, when), 1 if isinstance(sign, ast.Add) else -1)
        case ast.Subscript(value=ast.Name() | ast.Attribute() as name, slice=attack):
            return _reference(name, _attack(attack, when), when)
        case ast.Name() | ast.Attribute():
            return _reference(node, None, when)
    raise _refusal(when, f"{ast.unparse(node)!r}")


def _reference(node: ast.expr, attack: str | None, when: str) -> Reference:
    match node:
        case ast.Name(id=metric):
            return Reference("audit", metric, attack)
        case ast.Attribute(value=ast.Name(id="control" | "baseline" as source), attr=metric):
            return Reference("control" if source == "control" else "baseline", metric, attack)
    raise _refusal(when, f"{ast.unparse(node)!r}")


def _attack(node: ast.expr, when: str) -> str:
    """The text between the brackets; names of attacks may hold hyphens and colons."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    text = ast.get_source_segment(when.strip(), node)
    if not text:
        raise _refusal(when, "empty brackets")
    return text.replace(" ", "")


def _references(term: Term) -> Iterator[Reference]:
    if isinstance(term, Reference):
        yield term
    elif isinstance(term, Sum):
        yield from _references(term.left)
        yield from _references(term.right)
