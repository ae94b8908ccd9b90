"""What the page shows about how far its numbers carry: exposure and its bounds, controls, the worst identities."""

from collections.abc import Mapping
from typing import NamedTuple

from mi_audit.core.report import AttackResult, AuditReport, Comparison, Exposure, Interval, Quantity
from mi_audit.report import figures, wording
from mi_audit.report.classes import class_name, means
from mi_audit.report.figures import Axis, Whisker
from mi_audit.report.findings import pseudonym
from mi_audit.report.view import in_order, measurement_of, sides

WORST = 10  # identities in the table
IN_CONTROLS = ("exposure", "attack_acc1", "knn_l2sq_min", "target_acceptance")


class Gauge(NamedTuple):
    """Exposure on a scale, drawn like a row of measurements; `limit` in percent of the width."""

    title: str
    axis: Axis
    whiskers: tuple[Whisker, ...]
    before: None
    after: Quantity
    control: Quantity | None
    limit: float
    facts: tuple[tuple[str, str], ...]


class Control(NamedTuple):
    """A control, what it isolates, its numbers in the order of the columns, and how it was made."""

    title: str
    isolates: str
    values: tuple[Quantity | None, ...]
    note: str


class Leak(NamedTuple):
    """An attack minus one of its controls, paired by class and seed."""

    attack: str
    control: str
    title: str
    difference: Quantity


class Controls(NamedTuple):
    """All controls of an audit, and what the attacks reach beyond them."""

    columns: tuple[str, ...]
    rows: tuple[Control, ...]
    leaks: tuple[Leak, ...]


class Identity(NamedTuple):
    """One of the most exposed classes; `name` is empty when names are not to be shown."""

    pseudonym: str
    name: str
    exposed: float | None
    accuracy: float | None
    distance: float | None
    attack: str


def gauge(result: AuditReport | Comparison) -> Gauge | None:
    """The exposure that policy `audit-v1` decided on, when it did."""
    exposure = result.verdict.exposure if result.verdict else None
    if exposure is None:
        return None
    bounds = Interval(low=exposure.lower, high=exposure.adjusted, level=1 - exposure.alpha, method=exposure.method)
    share = Quantity(
        value=exposure.value, unit="share", count=exposure.attacked, counted="identities", interval=bounds
    )  # fmt: skip
    control = exposure.control if exposure.control and exposure.control.value is not None else None
    ends = [0.0, exposure.tau, exposure.adjusted, exposure.value, (control.value or 0.0) if control else 0.0]
    axis = figures.axis_of([min(1.0, end) for end in ends])
    drawn = (figures.whisker("control", control, axis), figures.whisker("only", share, axis))
    marks = tuple(mark for mark in drawn if mark)
    return Gauge("Exposure", axis, marks, None, share, control, axis.percent(exposure.tau), _gauge_facts(exposure))


def controls(report: AuditReport) -> Controls:
    """Every attack with the role of a control."""
    found = [attack for attack in report.attacks if attack.role == "control"]
    names = [name for name in IN_CONTROLS if any(measurement_of(control, name) for control in found)]
    rows = tuple(
        Control(
            wording.attack_title(control.name),
            wording.isolates(control.name),
            tuple(measurement_of(control, name) for name in names),
            control.note,
        )
        for control in found
    )
    leaks = tuple(
        Leak(
            wording.attack_title(attack.name),
            wording.attack_title(leak.protocol.rpartition("-over-")[2]),
            wording.metric_title(leak.name),
            leak,
        )
        for attack in report.without_controls
        for leak in attack.over_control
    )
    return Controls(tuple(wording.metric_title(name) for name in names), rows, leaks)


def worst(result: AuditReport | Comparison, *, names: bool = True) -> tuple[Identity, ...]:
    """The classes that any attack exposed most, the worst first; an average hides them."""
    _, report = sides(result)
    tables = {attack.name: _by_class(attack) for attack in report.without_controls}
    found = [
        identity for label in report.attacked if (identity := _identity(report, tables, label, names=names)) is not None
    ]  # fmt: skip
    return tuple(sorted(found, key=_badness)[:WORST])


def _badness(identity: Identity) -> tuple[float, float, float, str]:
    near = identity.distance if identity.distance is not None else float("inf")
    return -(identity.exposed or 0.0), -(identity.accuracy or 0.0), near, identity.pseudonym


def _identity(
    report: AuditReport, tables: Mapping[str, Mapping[str, Mapping[int, float]]], label: int, *, names: bool
) -> Identity | None:
    values = {
        attack: {metric: found[label] for metric, found in table.items() if label in found}
        for attack, table in tables.items()
    }
    known = {name: found for name, found in values.items() if found}
    if not known:
        return None
    strongest = max(known, key=lambda name: (known[name].get("exposure", 0.0), known[name].get("attack_acc1", 0.0)))
    name = class_name(report, label)
    distances = [found["knn_l2sq_min"] for found in known.values() if "knn_l2sq_min" in found]
    return Identity(
        pseudonym=pseudonym(name),
        name=name if names else "",
        exposed=_largest(known, "exposure"),
        accuracy=_largest(known, "attack_acc1"),
        distance=min(distances, default=None),
        attack=wording.attack_title(strongest),
    )


def _by_class(attack: AttackResult) -> dict[str, dict[int, float]]:
    """The mean of every class, by the name of what was measured."""
    return {m.name: means(m) for m in in_order(attack) if m.per_class}


def _largest(known: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    return max((found[name] for found in known.values() if name in found), default=None)


def _gauge_facts(exposure: Exposure) -> tuple[tuple[str, str], ...]:
    level = f"{1 - exposure.alpha:.0%}"
    counted = f"{exposure.exposed:,} of {wording.plural(exposure.attacked, 'identity', 'identities')} attacked"
    facts = [
        ("exposed", counted + (f", of {exposure.total:,} there are" if exposure.total else "")),
        (
            f"{level} bounds",
            f"{100 * exposure.lower:.1f}% to {100 * exposure.upper:.1f}%, each one-sided, {exposure.method}",
        ),
    ]
    if exposure.sensitivity < 1:
        facts.append(
            (
                "corrected upper bound",
                f"{100 * exposure.adjusted:.1f}%, since the verifier may miss {1 - exposure.sensitivity:.0%} of leaks",
            )
        )
    facts.append(("limit", f"{100 * exposure.tau:g}%"))
    facts.append(("strongest control", _counted(exposure.control)))
    if exposure.missing:
        facts.append(("without a value", f"{exposure.missing:,}, counted as exposed in the upper bound"))
    if exposure.more is not None:
        facts.append(("would decide", f"about {exposure.more:,} more identities, if the share stayed"))
    return tuple(facts)


def _counted(share: Quantity | None) -> str:
    if share is None or share.value is None:
        return "none measured exposure"
    return f"{round(share.value * share.count):,} of {share.count:,}"
