"""Utility against leakage: which models are on the front, and which one to recommend, if any. Free of torch.

Nothing here decides on point estimates alone where paired intervals are at hand: what they cannot tell apart is a tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mi_audit.audit.compare import paired, utility_change
from mi_audit.audit.exposed import NAME as EXPOSURE
from mi_audit.core.report import AuditReport, ClassValue, Comparison, Measurement, ModelFacts, Quantity
from mi_audit.core.sweep import Advice, Place, Worth
from mi_audit.nn.intervals import mean_interval, tables

ERROR = 0.05  # of all comparisons of one kind together (Bonferroni)
ATTACK = "attack_acc1"


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """A model with what its paired comparisons need: its facts per seed, and attack accuracy per class and seed."""

    worth: Worth
    models: tuple[ModelFacts, ...]
    leaks: tuple[ClassValue, ...]

    @property
    def measured(self) -> bool:
        """Whether both coordinates have a value."""
        return self.worth.accuracy.value is not None and self.worth.attack_accuracy.value is not None

    @property
    def accuracy(self) -> float:
        """Test accuracy, a share; asked of measured sides only."""
        return float(self.worth.accuracy.value or 0.0)

    @property
    def leakage(self) -> float:
        """Attack accuracy of the strongest attack, a share; asked of measured sides only."""
        return float(self.worth.attack_accuracy.value or 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """One value of a sweep: the defended model and its undefended twin."""

    value: str
    twin: Side
    defended: Side


def sides(result: Comparison) -> tuple[Side, Side]:
    """The undefended twin and the defended model of a run."""
    utility = utility_change(result.before.targets, result.after.targets)
    exposed = next((change for change in result.changes if change.name == EXPOSURE), None)
    first = _side(result.before, utility.before, exposed.before if exposed else None)
    return first, _side(result.after, utility.after, exposed.after if exposed else None)


def leakage_change(before: Side, after: Side, level: float = 0.95) -> Quantity:
    """Attack accuracy of the strongest attack, `after` minus `before`, paired by class and seed."""
    return paired(before.leaks, after.leaks, "share", level=level)


def accuracy_change(before: Side, after: Side) -> Quantity:
    """Test accuracy, `after` minus `before`, paired by class and seed."""
    return utility_change(before.models, after.models).difference


def places(models: Sequence[Side]) -> tuple[Place, ...]:
    """Where each of `models` lies between the others."""
    return tuple(_place(one, [other for other in models if other is not one]) for one in models)


def advise(tried: Sequence[Tried], tolerance: float) -> Advice:
    """The value that leaks least among those that cost at most `tolerance` of test accuracy, when that is no noise.

    A value counts only when its attack accuracy is below its twin's beyond the interval. Of values that cannot be told
    apart in leakage, one that is better in accuracy beyond the interval wins; else the lowest estimate, with the
    others named as ties.

    Args:
        tried: The values that ran.
        tolerance: Largest loss of test accuracy against the twin, a share.
    """
    known = [one for one in tried if one.twin.measured and one.defended.measured]
    if not known:
        return Advice(
            value=None, tied=(), tolerance=tolerance, why="No value was measured, so none can be recommended."
        )
    cheap = [one for one in known if _loss(one) <= tolerance + 1e-12]
    if not cheap:
        least = min(known, key=_loss)
        why = (
            f"No value keeps the accuracy within {_points(tolerance)} of the undefended twin; "
            f"the least is lost at {least.value}: {_points(_loss(least))}."
        )
        return Advice(value=None, tied=(), tolerance=tolerance, why=why)
    level = 1 - ERROR / len(cheap)
    safer = [one for one in cheap if _below_zero(leakage_change(one.twin, one.defended, level))]
    if not safer:
        why = (
            f"Of the values that cost at most {_points(tolerance)} of accuracy none lowers the attack accuracy by more "
            "than noise: every interval of the difference to the undefended twin includes zero. Attack more people or "
            "more seeds."
        )
        return Advice(value=None, tied=(), tolerance=tolerance, why=why)
    least = min(safer, key=lambda one: (one.defended.leakage, -one.defended.accuracy))
    chosen = max(
        [one for one in _alike(least, safer) if _rises(accuracy_change(least.defended, one.defended))],
        key=lambda one: one.defended.accuracy,
        default=least,
    )
    tied = _alike(chosen, cheap)
    why = _why(chosen, least, tuple(one.value for one in tied), tolerance)
    return Advice(value=chosen.value, tied=tuple(one.value for one in tied), tolerance=tolerance, why=why)


def _side(report: AuditReport, accuracy: Quantity, exposure: Quantity | None) -> Side:
    found = [(m.value, a.name, m) for a in report.without_controls if (m := a.measurement(ATTACK))]
    known = [(value, name, one) for value, name, one in found if value is not None]
    nothing = Quantity(value=None, unit="share", count=0, counted="images", reason="no attack was measured")
    _, name, best = max(known, key=lambda row: row[0], default=(0.0, "", None))
    reached = _plain(best) if best else nothing
    worth = Worth(accuracy=_spread(accuracy, report.targets), attack=name, attack_accuracy=reached, exposure=exposure)
    return Side(worth, report.targets, best.per_class if best else ())


def _plain(measurement: Measurement) -> Quantity:
    return Quantity(**{name: getattr(measurement, name) for name in Quantity.__dataclass_fields__})


def _spread(accuracy: Quantity, models: Sequence[ModelFacts]) -> Quantity:
    """The accuracy of several seeds with the interval over seeds and classes; that of one model has its own."""
    rows = tuple(replace(row, seed=place) for place, model in enumerate(models) for row in model.accuracy_per_class)
    if accuracy.interval is not None or not rows:
        return accuracy
    values, counts = tables(rows)
    return replace(accuracy, interval=mean_interval(values, weights=counts))


def _place(one: Side, others: Sequence[Side]) -> Place:
    if not one.measured:
        return "unmeasured"
    better = [other for other in others if other.measured and _beats(other, one)]
    if not better:
        return "front"
    sure = (_rises(accuracy_change(one, o)) or _below_zero(leakage_change(one, o)) for o in better)
    return "dominated" if any(sure) else "noise"


def _beats(one: Side, other: Side) -> bool:
    """Better in one coordinate and no worse in the other, by the estimates."""
    no_worse = one.accuracy >= other.accuracy and one.leakage <= other.leakage
    return no_worse and (one.accuracy, one.leakage) != (other.accuracy, other.leakage)


def _alike(one: Tried, others: Sequence[Tried]) -> list[Tried]:
    """Those of `others` whose leakage cannot be told from that of `one`."""
    rest = [other for other in others if other is not one]
    level = 1 - ERROR / max(1, len(rest))
    changes = [(other, leakage_change(one.defended, other.defended, level)) for other in rest]
    return [other for other, change in changes if not (_below_zero(change) or _rises(change))]


def _below_zero(change: Quantity) -> bool:
    return change.interval is not None and change.interval.high < 0


def _rises(change: Quantity) -> bool:
    return change.interval is not None and change.interval.low > 0


def _loss(one: Tried) -> float:
    return one.twin.accuracy - one.defended.accuracy


def _why(chosen: Tried, least: Tried, tied: tuple[str, ...], tolerance: float) -> str:
    change, cost = leakage_change(chosen.twin, chosen.defended), accuracy_change(chosen.twin, chosen.defended)
    before, after = chosen.twin.worth.attack_accuracy, chosen.defended.worth.attack_accuracy
    first = (
        f"{chosen.value} leaks least of the values that cost at most {_points(tolerance)} of accuracy"
        if chosen is least
        else f"{chosen.value} leaks no more than {least.value} as far as the intervals can tell, and is more accurate"
    )
    text = (
        f"{first}: the strongest attack ({chosen.defended.worth.attack.upper()}) reaches {after.value:.1%} instead of "
        f"{before.value:.1%} ({_signed(change)}), and test accuracy changes by {_signed(cost)}."
    )
    if tied:
        text += f" {_and(tied)} cannot be told from it in leakage."
    if cost.interval is not None and -cost.interval.low > tolerance:
        text += f" The loss of accuracy may be as large as {_points(-cost.interval.low)}."
    return text


def _points(share: float) -> str:
    number = f"{100 * share:.1f}".removesuffix(".0")
    return f"{number} point{'' if number == '1' else 's'}"


def _signed(change: Quantity) -> str:
    ends = change.interval
    around = f" [{100 * ends.low:+.1f}, {100 * ends.high:+.1f}]" if ends else ", no interval"
    return f"{100 * (change.value or 0.0):+.1f} points{around}"


def _and(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
