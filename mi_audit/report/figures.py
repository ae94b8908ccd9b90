"""The geometry of the figures; templates draw it as inline SVG in the colours of the page."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mi_audit.core.report import CurveFacts, Quantity

Side = Literal["only", "before", "after", "control"]
WIDTH, HEIGHT = 380, 190  # of a loss chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 26  # its margins


class Whisker(NamedTuple):
    """A dot with its interval, in percent of the track's width; `low` and `high` equal `mid` without an interval."""

    side: Side
    low: float
    mid: float
    high: float


class Axis(NamedTuple):
    """A linear scale with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def percent(self, value: float) -> float:
        """Position on the axis, 0 to 100, clipped to it."""
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)


class Line(NamedTuple):
    """One loss curve: SVG points, and the name in the legend."""

    side: Side
    points: str
    name: str


class Tick(NamedTuple):
    """A label on an axis, in SVG units."""

    place: float
    text: str


class Chart(NamedTuple):
    """Loss curves over steps."""

    title: str
    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    description: str


def axis_of(values: Sequence[float], target: int = 4) -> Axis:
    """The axis with round ends that shows all `values`."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / target)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, tuple(round(step * k, 12) for k in range(first, last + 1)))


def share_axis() -> Axis:
    """The axis of a share: 0 to 100 %, so that figures can be compared by eye."""
    return Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))


def quantity_axis(quantities: Sequence[Quantity | None]) -> Axis | None:
    """The axis for quantities of one unit; None when nothing was measured."""
    measured = [quantity for quantity in quantities if quantity is not None and quantity.value is not None]
    if not measured:
        return None
    if measured[0].unit == "share":
        return share_axis()
    return axis_of([end for quantity in measured for end in _ends(quantity)])


def whisker(side: Side, quantity: Quantity | None, axis: Axis | None) -> Whisker | None:
    """Where `quantity` lies on `axis`; None when there is nothing to draw."""
    if quantity is None or quantity.value is None or axis is None:
        return None
    low, mid, high = (axis.percent(value) for value in _ends(quantity))
    return Whisker(side, low, mid, high)


def loss_chart(title: str, curves: Sequence[tuple[Side, str, CurveFacts]]) -> Chart | None:
    """One chart with a line per curve; None when no curve has two finite points."""
    drawn = [(side, name, _finite(curve)) for side, name, curve in curves]
    drawn = [(side, name, points) for side, name, points in drawn if len(points) > 1]
    if not drawn:
        return None
    steps = axis_of([step for _, _, points in drawn for step, _ in points])
    steps = Axis(0.0, max(step for _, _, points in drawn for step, _ in points), steps.ticks)
    losses = axis_of([loss for _, _, points in drawn for _, loss in points])
    lines = tuple(Line(side, _points(points, steps, losses), name) for side, name, points in drawn)
    across = tuple(Tick(_across(tick, steps), f"{tick:g}") for tick in steps.ticks if 0 <= tick <= steps.high)
    up = tuple(Tick(_up(tick, losses), f"{tick:g}") for tick in losses.ticks)
    spoken = "; ".join(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for _, name, points in drawn)
    return Chart(title, lines, across, up, f"{title}: {spoken}")


def _ends(quantity: Quantity) -> tuple[float, float, float]:
    value = float(quantity.value or 0.0)
    return (quantity.interval.low, value, quantity.interval.high) if quantity.interval else (value, value, value)


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))


def _finite(curve: CurveFacts) -> list[tuple[float, float]]:
    pairs = zip(curve.steps, curve.losses, strict=False)
    return [(float(step), float(loss)) for step, loss in pairs if math.isfinite(loss)]


def _across(step: float, axis: Axis) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * axis.percent(step) / 100, 2)


def _up(loss: float, axis: Axis) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * axis.percent(loss) / 100, 2)


def _points(points: Sequence[tuple[float, float]], steps: Axis, losses: Axis) -> str:
    return " ".join(f"{_across(step, steps):g},{_up(loss, losses):g}" for step, loss in points)
