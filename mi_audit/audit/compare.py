"""Two audits beside each other: paired differences with intervals."""

from dataclasses import replace

import numpy as np

from mi_audit.audit.exposed import NAME as EXPOSURE
from mi_audit.audit.regression import exposure_changes
from mi_audit.core.errors import ConfigError
from mi_audit.core.report import (
    AttackResult,
    AuditReport,
    Change,
    ClassValue,
    Comparison,
    Interval,
    Measurement,
    ModelFacts,
    Quantity,
)
from mi_audit.nn.intervals import clopper_pearson, paired_difference

UTILITY = "utility"


def compare(before: AuditReport, after: AuditReport, command: str = "") -> Comparison:
    """The changes from `before` to `after`, paired by class and seed.

    Raises:
        ConfigError: The audits attacked different classes or data, so that nothing can be paired.
    """
    if before.private.fingerprint != after.private.fingerprint or before.attacked != after.attacked:
        raise ConfigError(
            "expected two audits of the same private data and classes, got different ones; run both on the same"
        )
    warnings = (
        []
        if before.evaluator.sha256 == after.evaluator.sha256
        else ["the evaluators differ: differences mix model and judge"]
    )
    changes = [utility_change(before.targets, after.targets)]
    for first in before.attacks:
        second = next((attack for attack in after.attacks if attack.name == first.name), None)
        if second is None:
            warnings.append(f"{first.name} ran only before")
        elif first.role == "attack":
            changes += [
                attack_change(first, second, one)
                for one in first.measurements
                if one.value is not None and one.name != EXPOSURE
            ]
    changes += exposure_changes(before, after)
    return Comparison(
        id=f"{before.id[:32]}{after.id[:32]}",
        command=command,
        defense=dict(after.targets[0].defense),
        model=None,
        before=before,
        after=after,
        changes=tuple(changes),
        summary=summarise(changes),
        warnings=tuple(warnings),
    )


def attack_change(before: AttackResult, after: AttackResult, first: Measurement) -> Change:
    """One measurement of one attack, before and after."""
    second = after.measurement(first.name)
    if second is None or first.value is None or second.value is None or first.protocol != second.protocol:
        missing = Quantity(
            value=None,
            unit=first.unit,
            count=0,
            counted="pairs",
            reason="not measured in both audits under one protocol",
        )
        return Change(
            attack=before.name,
            name=first.name,
            before=first,
            after=second or missing,
            difference=missing,
            meaning="not comparable",
        )
    difference = paired(first.per_class, second.per_class, first.unit)
    if difference.value is None:
        difference = replace(difference, value=second.value - first.value)
    return Change(
        attack=before.name,
        name=first.name,
        before=first,
        after=second,
        difference=difference,
        meaning=leakage_meaning(difference, first.leak_grows),
    )


def paired(
    before: tuple[ClassValue, ...],
    after: tuple[ClassValue, ...],
    unit: str,
    samples: bool = True,
    level: float = 0.95,
) -> Quantity:
    """After minus before over the (class, seed) pairs that both have.

    Args:
        before: The values of the first audit.
        after: The values of the second.
        unit: Of the values.
        samples: Whether the classes are the sample (of identities that could leak), so that a share which changed
            alike in all of them still has an exact bound; otherwise it has none.
        level: Nominal two-sided coverage of the interval.
    """
    first = {(row.seed, row.label): row.value for row in before}
    second = {(row.seed, row.label): row.value for row in after}
    pairs = sorted(first.keys() & second.keys())
    if not pairs:
        return Quantity(value=None, unit=unit, count=0, counted="pairs", reason="no class was measured in both audits")
    seeds, labels = (sorted({pair[axis] for pair in pairs}) for axis in (0, 1))
    tables = np.full((2, len(seeds), len(labels)), np.nan)
    for seed, label in pairs:
        for side, rows in enumerate((first, second)):
            tables[side, seeds.index(seed), labels.index(label)] = rows[seed, label]
    value, interval = paired_difference(tables[0], tables[1], level)
    if interval is not None and interval.low == interval.high:
        interval = _unanimous(value or 0.0, len(labels), level) if samples and unit == "share" else None
    reason = None if interval else "too few classes, or all changed alike: nothing to resample"
    return Quantity(
        value=value, unit=unit, count=len(pairs), counted="class-seed pairs", interval=interval, reason=reason
    )


def _unanimous(value: float, identities: int, level: float) -> Interval:
    """Where all identities changed alike: the exact bound on the share that might have changed otherwise."""
    reach = clopper_pearson(0, identities, level)[1]
    method = f"exact binomial over {identities} identities that all changed alike"
    return Interval(low=max(-1.0, value - reach), high=min(1.0, value + reach), level=level, method=method)


def utility_change(before: tuple[ModelFacts, ...], after: tuple[ModelFacts, ...]) -> Change:
    """Test accuracy before and after; classes weigh by their number of test images."""
    difference = paired(_weighted(before), _weighted(after), "share", samples=False)
    meaning = {None: "no significant change", True: "better", False: "worse"}[_direction(difference)]
    if difference.value is None:
        meaning = "not comparable"
    return Change(
        attack=UTILITY,
        name="accuracy",
        before=_pooled(before),
        after=_pooled(after),
        difference=difference,
        meaning=meaning,
    )


def leakage_meaning(difference: Quantity, leak_grows: bool | None) -> str:
    """What a difference says about leakage, when its interval excludes zero."""
    rises = _direction(difference)
    if difference.interval is None:
        return "not comparable"
    if rises is None:
        return "no significant change"
    if leak_grows is None:
        return "higher" if rises else "lower"
    return "more leakage" if rises == leak_grows else "less leakage"


def summarise(changes: list[Change]) -> str:
    """One sentence on the strongest attack before the defense, on the identities exposed, and on utility."""
    utility = changes[0]
    leaks = [change for change in changes if change.name == "attack_acc1" and change.before.value is not None]
    if not leaks:
        return "No attack was measured in both audits."
    worst = max(leaks, key=lambda change: change.before.value or 0.0)
    leak = f"{_percent(worst.before)} to {_percent(worst.after)}"
    sentence = f"Attack accuracy of the strongest attack ({worst.attack.upper()}) went from {leak} ({worst.meaning}); "
    exposed = next((change for change in changes if change.name == EXPOSURE), None)  # of all attacks stands first
    if exposed is not None:
        share = f"{_percent(exposed.before)} to {_percent(exposed.after)}"
        sentence += f"the share of exposed identities from {share} ({exposed.meaning}); "
    cost = f"test accuracy from {_percent(utility.before)} to {_percent(utility.after)}"
    return f"{sentence}{cost} ({utility.meaning})."


def _direction(difference: Quantity) -> bool | None:
    """True when it rises, False when it falls, None when the interval includes zero."""
    if difference.interval is None or difference.interval.low <= 0 <= difference.interval.high:
        return None
    return difference.interval.low > 0


def _percent(quantity: Quantity) -> str:
    if quantity.value is None:
        return "unknown"
    interval = quantity.interval
    around = f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if interval else ""
    return f"{100 * quantity.value:.1f}%{around}"


def _weighted(models: tuple[ModelFacts, ...]) -> tuple[ClassValue, ...]:
    """Class accuracies scaled so that their plain mean is the accuracy over all images."""
    rows = []
    for place, model in enumerate(models):
        mean = sum(row.count for row in model.accuracy_per_class) / max(1, len(model.accuracy_per_class))
        rows += [replace(row, seed=place, value=row.value * row.count / mean) for row in model.accuracy_per_class]
    return tuple(rows)


def _pooled(models: tuple[ModelFacts, ...]) -> Quantity:
    """The accuracy of one model, or the mean over the models of several seeds with the spread between them."""
    if len(models) == 1:
        return models[0].accuracy
    values = [model.accuracy.value for model in models if model.accuracy.value is not None]
    spread = ", ".join(f"{value:.3f}" for value in values)
    return Quantity(
        value=float(np.mean(values)),
        unit="share",
        count=sum(model.accuracy.count for model in models),
        counted="images",
        reason=f"mean over {len(values)} training seeds ({spread})",
    )
