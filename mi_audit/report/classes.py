"""What the page shows class by class: the pictures side by side, and the table of values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from mi_audit.core.report import AttackResult, AuditReport, Comparison, Measurement, Picture
from mi_audit.report import wording
from mi_audit.report.figures import Side
from mi_audit.report.view import in_order, measurement_of, named, sides

MOST_CLASSES = 60  # cards per attack in the gallery
TOO_COARSE = (  # they tell few classes apart, and a page has room for few columns
    "attack_acc5", "target_acceptance", "exposure_train", "type1_gap", "diversity_1cos", "share_closer_pixel",
    "share_closer_evaluator", "kes",
)  # fmt: skip
Embed = Callable[[str | None], str | None]


class Shot(NamedTuple):
    """A picture in the gallery; `source` is a data URI, None when it is missing. `side` is empty for private ones."""

    source: str | None
    caption: str
    accepted: bool | None
    hit: bool | None
    side: Literal["", "before", "after", "only"] = ""


class Card(NamedTuple):
    """The pictures of one class."""

    name: str
    shots: tuple[Shot, ...]


class Gallery(NamedTuple):
    """The pictures of one attack; `left_out` classes have a card no more."""

    title: str
    cards: tuple[Card, ...]
    left_out: int


class Cell(NamedTuple):
    """A number in the table of classes: text to read, value to sort by, share of the bar behind it."""

    text: str
    value: float | None
    bar: float | None
    side: Side


class Group(NamedTuple):
    """Neighbouring columns of the table of classes that belong to one attack."""

    title: str
    columns: tuple[str, ...]


class ClassTable(NamedTuple):
    """One line per attacked class."""

    groups: tuple[Group, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def galleries(result: AuditReport | Comparison, embed: Embed) -> tuple[Gallery, ...]:
    """Pictures side by side, class by class; the most exposed classes when there are too many."""
    before, after = sides(result)
    found = []
    for attack in after.without_controls:
        twin = named(before, attack.name)
        labels = sorted({p.label for side in (twin, attack) if side for p in side.pictures})
        chosen = sorted(_most_exposed(twin or attack, labels)[:MOST_CLASSES])
        cards = tuple(Card(class_name(after, label), _shots(label, twin, attack, embed)) for label in chosen)
        if cards:
            found.append(Gallery(wording.attack_title(attack.name), cards, len(labels) - len(cards)))
    return tuple(found)


def class_table(result: AuditReport | Comparison) -> ClassTable:
    """The values of every attacked class, averaged over seeds."""
    before, after = sides(result)
    groups: list[Group] = []
    cells: list[Mapping[int, Cell]] = []
    for attack in after.without_controls:
        columns: list[str] = []
        for measurement in (m for m in in_order(attack) if m.per_class and m.name not in TOO_COARSE):
            title = wording.metric_short(measurement.name)
            if before is not None:
                columns.append(f"{title} before")
                cells.append(_cells(measurement_of(named(before, attack.name), measurement.name), "before"))
            columns.append(f"{title} after" if before is not None else title)
            cells.append(_cells(measurement, "after" if before is not None else "only"))
        if columns:
            groups.append(Group(wording.attack_title(attack.name), tuple(columns)))
    empty = Cell(wording.DASH, None, None, "only")
    rows = tuple((class_name(after, c), tuple(column.get(c, empty) for column in cells)) for c in after.attacked)
    return ClassTable(tuple(groups), rows if groups else ())


def class_name(report: AuditReport, label: int) -> str:
    """The name of a class, or its label when it has none."""
    return report.classes[label] if label < len(report.classes) else str(label)


def _most_exposed(attack: AttackResult, labels: Sequence[int]) -> list[int]:
    average = means(attack.measurement("attack_acc1"))
    return sorted(labels, key=lambda label: (-average.get(label, 0.0), label))


def means(measurement: Measurement | None) -> dict[int, float]:
    """The mean of each class over seeds, weighted by the number of images."""
    total: dict[int, float] = {}
    count: dict[int, int] = {}
    for item in measurement.per_class if measurement else ():
        total[item.label] = total.get(item.label, 0.0) + item.value * item.count
        count[item.label] = count.get(item.label, 0) + item.count
    return {label: total[label] / count[label] for label in total if count[label]}


def _cells(measurement: Measurement | None, side: Side) -> dict[int, Cell]:
    if measurement is None:
        return {}
    as_share = measurement.unit == "share"
    average = means(measurement)
    return {
        label: Cell(wording.number(value, measurement.unit), value, round(100 * value, 1) if as_share else None, side)
        for label, value in average.items()
    }


def _shots(label: int, twin: AttackResult | None, attack: AttackResult, embed: Embed) -> tuple[Shot, ...]:
    earlier = next((p for p in twin.pictures if p.label == label), None) if twin else None
    now = next((p for p in attack.pictures if p.label == label), None)
    nearest = next((p.nearest for p in (earlier, now) if p and p.nearest), None)
    shots = [Shot(embed(nearest), "nearest private image", None, None)]
    wanted: list[tuple[Picture | None, str, Literal["before", "after", "only"]]]
    wanted = (
        [(earlier, "undefended", "before"), (now, "defended", "after")] if twin else [(now, "reconstruction", "only")]
    )
    for picture, caption, side in wanted:
        if picture:
            shots.append(Shot(embed(picture.file), caption, picture.accepted, picture.hit, side))
        else:
            shots.append(Shot(None, caption, None, None, side))
    return tuple(shots)
