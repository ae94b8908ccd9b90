"""What the measurements in a gate rule amount to: intervals, or the reason why there is none."""

from dataclasses import dataclass

from mi_audit.audit.expression import Reference, Sum, Term
from mi_audit.core.report import AuditReport, Change, Quantity


@dataclass(frozen=True, slots=True)
class Bounds:
    """A value with the ends of its interval; all equal for a number without error."""

    low: float
    value: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g}" if self.low == self.high else f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True, slots=True)
class Case:
    """What a rule is judged on.

    Attributes:
        baseline: The audit to compare with: the given one, else the undefended twin.
        changes: Paired differences to the twin; empty when another baseline was given.
    """

    report: AuditReport
    baseline: AuditReport | None
    changes: tuple[Change, ...]


def bounds(term: Term, case: Case, attack: str) -> Bounds | str:
    """The interval of `term`, or the reason why there is none; `attack` stands in for references that name none."""
    if isinstance(term, float):
        return Bounds(term, term, term)
    if isinstance(term, Reference):
        found = _find(term, case, attack)
        return found if isinstance(found, str) else _interval(found, term)
    paired = _paired(term, case, attack)
    if paired is not None:
        return paired
    left, right = bounds(term.left, case, attack), bounds(term.right, case, attack)
    if isinstance(left, str):
        return left
    if isinstance(right, str):
        return right
    if term.sign == 1:
        return Bounds(left.low + right.low, left.value + right.value, left.high + right.high)
    return Bounds(left.low - right.high, left.value - right.value, left.high - right.low)


def _paired(term: Sum, case: Case, attack: str) -> Bounds | None:
    """The paired interval of `metric - baseline.metric`, when the baseline is the undefended twin."""
    left, right = term.left, term.right
    if not (isinstance(left, Reference) and isinstance(right, Reference)) or term.sign == 1:
        return None
    if (
        (left.source, right.source) != ("audit", "baseline")
        or left.metric != right.metric
        or left.attack != right.attack
    ):
        return None
    name = "utility" if left.metric == "accuracy" else left.attack or attack
    change = next((c for c in case.changes if (c.attack, c.name) == (name, left.metric)), None)
    bounds = _interval(change.difference, left) if change and change.meaning != "not comparable" else None
    return bounds if isinstance(bounds, Bounds) else None


def _interval(quantity: Quantity, reference: Reference) -> Bounds | str:
    value, interval = quantity.value, quantity.interval
    if value is None:
        return f"{reference} was not measured: {quantity.reason or 'no reason given'}"
    if interval is not None:
        return Bounds(float(interval.low), float(value), float(interval.high))
    if (quantity.reason or "").lower().startswith("exact"):
        return Bounds(float(value), float(value), float(value))
    return f"{reference} = {value:.3g} has no interval ({quantity.reason or 'no reason given'}), so it decides nothing"


def _find(reference: Reference, case: Case, attack: str) -> Quantity | str:
    """The measurement that `reference` names, or why it is missing."""
    report = case.baseline if reference.source == "baseline" and case.baseline else case.report
    if reference.metric == "evaluator_accuracy":
        return report.evaluator.accuracy
    if reference.metric == "accuracy":
        return min((model.accuracy for model in report.targets), key=lambda quantity: quantity.value or 0.0)
    name = reference.attack or attack
    if reference.source == "control":
        return _find_control(reference, report, name)
    chosen = next((a for a in report.attacks if a.name == name), None)
    found = chosen.measurement(reference.metric) if chosen else None
    if found is None:
        ran = ", ".join(a.name for a in report.attacks)
        return (
            f"{reference} of {name} is missing; there are {ran}"
            if chosen is None
            else f"{reference} of {name} is missing"
        )
    return found if reference.source == "audit" else _same_protocol(reference, found, case, name)


def _find_control(reference: Reference, report: AuditReport, name: str) -> Quantity | str:
    """The strongest control that was drawn from the attack's prior, or the one named in brackets."""
    controls = [a for a in report.attacks if a.floor]
    named = [a for a in report.attacks if a.role == "control" and a.name == name]
    prior = next((a.prior for a in report.attacks if a.name == name), None)
    chosen = named or [a for a in controls if a.prior == prior] or controls
    found = [m for a in chosen if (m := a.measurement(reference.metric)) and m.value is not None]
    if not found:
        return f"{reference} is missing: no control measured it"
    grows = found[0].leak_grows is not False
    return max(found, key=lambda m: (m.value or 0.0) if grows else -(m.value or 0.0))


def _same_protocol(reference: Reference, found: Quantity, case: Case, name: str) -> Quantity | str:
    now = next((a.measurement(reference.metric) for a in case.report.attacks if a.name == name), None)
    before = getattr(found, "protocol", None)
    if now is not None and before != now.protocol:
        return f"{reference} was measured as {before}, not as {now.protocol}: the numbers cannot be compared"
    return found
