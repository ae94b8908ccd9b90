import pytest

from mi_audit.nn.exposure_bounds import fixed_bounds, sequential_bounds


def outcomes(exposed, attacked, unknown=0):
    best = (1.0,) * exposed + (0.0,) * (attacked - exposed)
    worst = (1.0,) * (exposed + unknown) + (0.0,) * (attacked - exposed - unknown)
    return worst, best


def fixed(exposed, attacked, total=None, unknown=0, sensitivity=1.0):
    return fixed_bounds(outcomes(exposed, attacked, unknown), total, 0.1, 0.05, sensitivity)


@pytest.mark.parametrize(
    ("counts", "state"),
    [((21, 300), "PASS"), ((22, 300), "CONTINUE"), ((39, 300), "CONTINUE"), ((40, 300), "FAIL"), ((0, 28), "CONTINUE")],
)
def test_three_hundred_people_decide_between_seven_and_thirteen_percent(counts, state):
    assert fixed(*counts).state == state


def test_the_method_says_what_is_known_about_everybody():
    assert fixed(0, 29).method == "Clopper-Pearson"
    assert fixed(0, 28, 530).method == "hypergeometric" and fixed(0, 28, 530).state == "PASS"
    census = fixed(3, 30, 30)
    assert (census.method, census.lower, census.upper, census.state) == ("census", 0.1, 0.1, "PASS")


def test_sensitivity_lowers_the_limit_to_pass_only():
    assert fixed(0, 29, sensitivity=0.9).state == "CONTINUE" and fixed(0, 32, sensitivity=0.9).state == "PASS"
    assert fixed(40, 300, sensitivity=0.5).state == "FAIL"


def test_unknown_ones_widen_both_bounds():
    sure, unsure = fixed(5, 50), fixed(5, 50, unknown=3)
    assert unsure.upper > sure.upper and unsure.lower == sure.lower
    assert fixed(0, 30, 30, unknown=4).state == "CONTINUE" and fixed(0, 30, 30, unknown=3).state == "PASS"


def test_forecast_names_how_many_more_would_decide():
    assert fixed(0, 20).more == 9  # 29 without any
    assert fixed(0, 20, 530).more == 8
    assert fixed(1, 10).more is None  # exactly the limit: no number decides
    assert fixed(0, 29).more is None


def test_counting_stops_at_the_first_decision():
    found = sequential_bounds(outcomes(0, 35), None, 0.1, 0.05, 1.0)
    assert (found.state, found.method) == ("PASS", "e-process") and found.upper <= 0.1
    assert sequential_bounds(outcomes(0, 34), None, 0.1, 0.05, 1.0).state == "CONTINUE"
    found = sequential_bounds(outcomes(6, 6), None, 0.1, 0.05, 1.0)
    assert found.state == "FAIL" and found.lower > 0.1


def test_counting_goes_on_and_says_for_how_long():
    found = sequential_bounds(outcomes(0, 30), None, 0.1, 0.05, 1.0)
    assert (found.state, found.more) == ("CONTINUE", 5)


def test_in_the_end_the_census_decides():
    found = sequential_bounds(outcomes(1, 10), 10, 0.1, 0.05, 1.0)
    assert (found.state, found.method) == ("PASS", "census")


def late(unexposed, exposed, total):
    """Nobody at first, then everybody: the evidence for a low share came first."""
    both = (0.0,) * unexposed + (1.0,) * exposed
    return sequential_bounds((both, both), total, 0.1, 0.05, 1.0)


def test_a_census_is_never_judged_by_what_its_beginning_said():
    found = late(32, 32, 64)
    assert (found.state, found.method, found.lower, found.upper) == ("FAIL", "census", 0.5, 0.5)
    assert sequential_bounds(outcomes(6, 64), 64, 0.1, 0.05, 1.0).state == "PASS"  # the first six would fail


def test_hits_after_the_decision_are_counted():
    found = late(40, 24, 530)
    assert found.state == "CONTINUE" and found.lower <= 24 / 64 <= found.upper
    assert found.more == 466  # the evidence contradicts itself, so only the census is left
    assert late(40, 24, None).more is None
    assert late(62, 7, 70).more == 1  # 7 of 69 are too many, 7 of 70 are not
    few = late(60, 8, 530)  # 8 of 68 are more than the limit, although not for sure
    assert few.state == "CONTINUE" and few.upper >= 8 / 68
    assert late(60, 1, 530).state == "PASS"
