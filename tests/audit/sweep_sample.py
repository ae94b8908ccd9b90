"""Runs of a defense whose numbers are chosen: one model, twenty people, one attack beside a weaker one."""

from dataclasses import replace

from mi_audit.audit.compare import compare
from mi_audit.core.report import ClassValue, Comparison, Interval, ModelFacts, Quantity
from mi_audit.nn.intervals import clopper_pearson
from tests.report.sample import attack, audit, measured, model

PEOPLE = 20


def rows(*values: float) -> tuple[ClassValue, ...]:
    """One value per person under one seed, the given ones in turn."""
    return tuple(ClassValue(label=k, seed=0, value=values[k % len(values)], count=10) for k in range(PEOPLE))


def first(count: int) -> tuple[ClassValue, ...]:
    """1 for the first `count` people, 0 for the others."""
    return tuple(ClassValue(label=k, seed=0, value=float(k < count), count=10) for k in range(PEOPLE))


def facts(accuracy: tuple[ClassValue, ...], sha: str) -> ModelFacts:
    value = sum(row.value for row in accuracy) / PEOPLE
    low, high = clopper_pearson(value * 200, 200)
    bounds = Interval(low=low, high=high, method="exact binomial")
    share = Quantity(value=value, unit="share", count=200, counted="images", interval=bounds)
    made = model(0.9, accuracy_per_class=accuracy, sha256=sha * 32, defense={"kind": "information"})
    return replace(made, accuracy=share)


def side(leak: tuple[ClassValue, ...], accuracy: tuple[ClassValue, ...], sha: str):
    value = sum(row.value for row in leak) / PEOPLE
    best = measured("attack_acc1", value, max(0.0, value - 0.1), min(1.0, value + 0.1), per_class=leak)
    weak = replace(best, value=0.0, per_class=rows(0.0))
    attacks = (attack("gmi", 0.1, measurements=(weak,)), attack("ppa", 0.1, measurements=(best,)))
    return audit(targets=(facts(accuracy, sha),), attacked=tuple(range(PEOPLE)), attacks=attacks)


def run(leak, accuracy, *, twin_leak=None, twin_accuracy=None, twin_sha: str = "00", **more) -> Comparison:
    """A run whose twin gives away everybody and is right on every image, unless told otherwise."""
    before = side(twin_leak or first(PEOPLE), twin_accuracy or rows(1.0), twin_sha)
    result = compare(before, side(leak, accuracy, "aa"))
    return replace(result, **{"model": "models/defended-s0.safetensors", "defense": {"kind": "information"}, **more})
