"""Numbers that say how sure they are: value, unit, count, and an interval or the reason why there is none."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence interval.

    Attributes:
        low, high: Bounds, in the unit of the value.
        level: Nominal two-sided coverage.
        method: How it was computed, and over which units.
    """

    low: float
    high: float
    level: float = 0.95
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number that can be trusted, or the reason why there is none.

    Attributes:
        value: None when it could not be measured; never NaN.
        unit: `share` (0 to 1), `feature distance`, `images`, ...
        count, counted: How many of what it was measured on.
        interval: None when `reason` says why.
        reason: Why value or interval is missing.
    """

    value: float | None
    unit: str
    count: int
    counted: str
    interval: Interval | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassValue:
    """One class under one seed: the mean of a metric over its `count` reconstructions."""

    label: int
    seed: int
    value: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(Quantity):
    """A metric on the reconstructions of one attack.

    Attributes:
        name: Short name, used in gate expressions: `attack_acc1`.
        protocol: `metric/unit/subset/selector@judge`, so that numbers of different protocols are never compared.
        leak_grows: True when a larger value means more leakage, False when less, None when neither.
        per_class: The value of each class and seed, when the metric has one.
    """

    name: str
    protocol: str
    leak_grows: bool | None
    per_class: tuple[ClassValue, ...] = ()
