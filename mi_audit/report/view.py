"""What the page shows, arranged: facts, rows and charts, without any markup."""

from collections.abc import Sequence
from typing import NamedTuple

from mi_audit.core.report import AttackResult, AuditReport, Change, Comparison, CurveFacts, Measurement, Quantity
from mi_audit.report import figures, wording
from mi_audit.report.figures import Axis, Chart, Side, Whisker


class Fact(NamedTuple):
    """A number beside the headline; `before` is None in an audit."""

    title: str
    value: str
    note: str
    before: str | None


class Row(NamedTuple):
    """A metric of one attack; `before` and `difference` are None in an audit."""

    name: str
    title: str
    help: str
    direction: str
    before: Quantity | None
    after: Quantity
    control: Quantity | None
    difference: Quantity | None
    meaning: str
    tone: wording.Tone
    axis: Axis | None
    whiskers: tuple[Whisker, ...]


class Block(NamedTuple):
    """The rows of one attack; `notes` say why numbers or intervals are missing."""

    name: str
    title: str
    access: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def sides(result: AuditReport | Comparison) -> tuple[AuditReport | None, AuditReport]:
    """The undefended audit, when there is one, and the audit that counts."""
    return (result.before, result.after) if isinstance(result, Comparison) else (None, result)


def key_facts(result: AuditReport | Comparison) -> tuple[Fact, ...]:
    """The few numbers beside the headline."""
    before, after = sides(result)
    strongest = wording.strongest_attack(after)
    found = []
    if strongest is not None:
        title = f"Strongest attack, {wording.attack_title(strongest.name)}"
        reached = strongest.measurement("attack_acc1")
        earlier = measurement_of(named(before, strongest.name), "attack_acc1")
        found.append(_fact(title, earlier, reached, "top-1 attack accuracy"))
        control = wording.control_for(after, strongest)
        title = "Without the model" if control is None or wording.is_random(control) else "Control"
        about = "no control was run" if control is None else wording.control_words(control)
        found.append(_fact(title, None, measurement_of(control, "attack_acc1"), about))
    for row in utility(result)[:1]:
        found.append(_fact("Accuracy of the model", row.before, row.after, "on private test images"))
    seeds = len({seed for attack in after.without_controls for seed in attack.seeds})
    classes = f"{len(after.attacked):,} of {len(after.classes):,}"
    runs = wording.plural(seeds, "seed")
    about = f"{runs}; {len(after.planned):,} planned, the bounds had decided" if after.planned else runs
    found.append(Fact("Classes attacked", classes, about, None))
    return tuple(found)


def floor_words(result: AuditReport | Comparison) -> str:
    """The controls that attacks are shown beside, in words."""
    _, after = sides(result)
    controls = [control for attack in after.without_controls if (control := wording.control_for(after, attack))]
    return " or ".join(dict.fromkeys(wording.control_words(control) for control in controls)) or "none was run"


def blocks(result: AuditReport | Comparison) -> tuple[Block, ...]:
    """The measurements, attack by attack."""
    before, after = sides(result)
    changes = result.changes if isinstance(result, Comparison) else ()
    found = []
    for attack in after.without_controls:
        twin, control = named(before, attack.name), wording.control_for(after, attack)
        rows = tuple(_row(attack, measurement, twin, control, changes) for measurement in in_order(attack))
        found.append(Block(attack.name, wording.attack_title(attack.name), attack.access, rows, _notes(rows)))
    return tuple(found)


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """The reasons behind the numbers, each with all that share it."""
    titles: dict[str, list[str]] = {}
    for row in rows:
        if row.after.reason:
            titles.setdefault(row.after.reason, []).append(row.title)
    return tuple(f"{', '.join(named)}: {reason}." for reason, named in titles.items())


def utility(result: AuditReport | Comparison) -> tuple[Row, ...]:
    """What the model is worth to its owner: accuracy, before and after."""
    before, after = sides(result)
    if isinstance(result, Comparison):
        changes = [change for change in result.changes if change.attack == "utility"]
        if changes:
            return tuple(_arranged(change.name, change.before, change.after, None, change) for change in changes)
    twins = before.targets if before else ()
    rows = []
    for place, model in enumerate(after.targets):
        twin = twins[place].accuracy if place < len(twins) else None
        row = _arranged("accuracy", twin, model.accuracy, None, None)
        rows.append(row._replace(title=f"{row.title}, seed {model.seed}") if len(after.targets) > 1 else row)
    return tuple(rows)


def charts(result: AuditReport | Comparison) -> tuple[Chart, ...]:
    """The loss curves, one chart per attack and stage."""
    before, after = sides(result)
    found = []
    for attack in after.without_controls:
        twin = named(before, attack.name)
        for curve in attack.curves:
            lines: list[tuple[Side, str, CurveFacts]] = []
            lines += [
                ("before", "before", other) for other in (twin.curves if twin else ()) if other.stage == curve.stage
            ]
            lines.append(("after" if before else "only", "after" if before else "loss", curve))
            chart = figures.loss_chart(f"{wording.attack_title(attack.name)}, {curve.stage}", lines)
            if chart:
                found.append(chart)
    return tuple(found)


def _fact(title: str, before: Quantity | None, after: Quantity | None, note: str) -> Fact:
    earlier = wording.number(before.value, before.unit) if before else None
    value = wording.number(after.value, after.unit) if after else wording.DASH
    spread = wording.interval(after)
    return Fact(title, value, f"{spread} {note}".strip(), earlier)


def _row(
    attack: AttackResult,
    measurement: Measurement,
    twin: AttackResult | None,
    control: AttackResult | None,
    changes: Sequence[Change],
) -> Row:
    change = next((c for c in changes if (c.attack, c.name) == (attack.name, measurement.name)), None)
    # A change may pool otherwise than the measurement (exposure: by identity, over seeds): show its own two ends.
    earlier = change.before if change else measurement_of(twin, measurement.name)
    later = change.after if change else measurement
    row = _arranged(measurement.name, earlier, later, measurement_of(control, measurement.name), change)
    if measurement.leak_grows is None:  # neither direction is leakage, so a change means nothing
        row = row._replace(meaning="", tone="plain")
    return row._replace(direction=wording.leak_direction(measurement))


def _arranged(
    name: str, before: Quantity | None, after: Quantity, control: Quantity | None, change: Change | None
) -> Row:
    axis = figures.quantity_axis([before, after, control])
    drawn = [
        figures.whisker("control", control, axis),
        figures.whisker("before", before, axis),
        figures.whisker("only" if before is None else "after", after, axis),
    ]
    return Row(
        name=name,
        title=wording.metric_title(name),
        help=wording.metric_help(name),
        direction="",
        before=before,
        after=after,
        control=control,
        difference=change.difference if change else None,
        meaning=change.meaning if change else "",
        tone=wording.MEANINGS.get(change.meaning, "plain") if change else "plain",
        axis=axis,
        whiskers=tuple(mark for mark in drawn if mark),
    )


def in_order(attack: AttackResult) -> list[Measurement]:
    """The measurements, the best known first."""
    order = list(wording.METRICS)
    return sorted(attack.measurements, key=lambda m: order.index(m.name) if m.name in order else len(order))


def named(report: AuditReport | None, name: str) -> AttackResult | None:
    """The attack called `name`, or None."""
    return next((attack for attack in report.attacks if attack.name == name), None) if report else None


def measurement_of(attack: AttackResult | None, name: str) -> Measurement | None:
    """The measurement called `name`, or None."""
    return attack.measurement(name) if attack else None
