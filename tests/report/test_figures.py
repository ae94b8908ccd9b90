from hypothesis import given
from hypothesis import strategies as st

from mi_audit.core.report import CurveFacts
from mi_audit.report import figures
from tests.report import sample


def test_axis_has_round_ticks_that_hold_the_values():
    axis = figures.axis_of([6.1, 8.9])
    assert axis.ticks == (6.0, 7.0, 8.0, 9.0)
    assert axis.percent(7.5) == 50.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_every_value_lies_on_its_axis(values):
    axis = figures.axis_of(values)
    slack = 1e-8 * (axis.high - axis.low)  # a value that close to a tick needs no further one
    assert axis.low <= min(values) + slack and max(values) - slack <= axis.high and 2 <= len(axis.ticks) <= 8


def test_shares_are_drawn_from_nothing_to_all():
    axis = figures.quantity_axis([sample.share(0.5, 0.25, 0.75)])
    assert figures.whisker("after", sample.share(0.5, 0.25, 0.75), axis) == ("after", 25.0, 50.0, 75.0)


def test_a_missing_value_is_not_drawn():
    assert figures.quantity_axis([None, sample.share(None)]) is None
    assert figures.whisker("only", sample.share(None), figures.share_axis()) is None


def test_loss_curve_falls_from_the_upper_left_to_the_lower_right():
    curve = CurveFacts(stage="optimise", steps=(0, 10), losses=(2.0, 0.0))
    chart = figures.loss_chart("PPA", [("only", "loss", curve)])
    assert chart.lines[0].points == "44,10 372,164"
    assert chart.description == "PPA: loss from 2 to 0"


def test_loss_curves_skip_what_cannot_be_drawn():
    broken = CurveFacts(stage="optimise", steps=(0, 1), losses=(float("nan"), 1.0))
    assert figures.loss_chart("PPA", [("only", "loss", broken)]) is None
