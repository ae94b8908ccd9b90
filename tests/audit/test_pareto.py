import pytest

from mi_audit.audit.pareto import Tried, advise, places, sides
from tests.audit.sweep_sample import PEOPLE, first, rows, run


def tried(value, *args, **more):
    return Tried(value, *sides(run(*args, **more)))


def test_a_side_is_its_accuracy_and_its_strongest_attack():
    twin, defended = sides(run(first(5), rows(1.0, 0.8)))
    assert (twin.accuracy, twin.leakage) == (1.0, 1.0)
    assert (defended.accuracy, defended.leakage, defended.worth.attack) == (pytest.approx(0.9), 0.25, "ppa")
    assert defended.worth.accuracy.interval is not None and defended.worth.exposure is None


def test_several_seeds_have_an_interval_over_seeds_and_people():
    from dataclasses import replace

    result = run(first(5), rows(1.0, 0.8))
    other = replace(result.after.targets[0], sha256="bb" * 32, accuracy_per_class=rows(0.7, 0.9))
    result = replace(result, after=replace(result.after, targets=(*result.after.targets, other)))
    accuracy = sides(result)[1].worth.accuracy
    assert accuracy.interval is not None and accuracy.interval.method == f"bootstrap over 2 seeds x {PEOPLE} identities"
    assert accuracy.interval.low < 0.9 < accuracy.interval.high


def test_the_front_by_hand():
    best = sides(run(first(0), rows(1.0)))[1]  # as accurate as the twin, leaks nothing
    twin, worse = sides(run(first(10), rows(0.5)))  # half as accurate, leaks half
    noisy = sides(run(first(0), rows(*[1.0] * (PEOPLE - 1), 0.9)))[1]  # one image of one person behind the best
    assert places([twin, best, worse, noisy]) == ("dominated", "front", "dominated", "noise")
    assert places([twin, worse]) == ("front", "front")  # more accurate, or leaks less
    assert places([best, best]) == ("front", "front")


def test_recommends_the_least_leakage_within_the_tolerance_and_says_why():
    some, most, all_ = (
        tried("40%", first(12), rows(0.99)),
        tried("80%", first(3), rows(0.985)),
        tried("90%", first(0), rows(0.9)),
    )
    advice = advise([some, most, all_], 0.02)
    assert (advice.value, advice.tied) == ("80%", ())
    assert advice.why.startswith("80% leaks least of the values that cost at most 2 points of accuracy: the strongest")
    assert "(PPA) reaches 15.0% instead of 100.0% (-85.0 points [" in advice.why
    assert "test accuracy changes by -1.5 points" in advice.why
    assert advise([some, most, all_], 0.15).value == "90%"


def test_values_that_cannot_be_told_apart_are_ties():
    few, fewer = tried("60%", first(4), rows(0.99)), tried("80%", first(3), rows(0.99))
    advice = advise([few, fewer], 0.02)
    assert (advice.value, advice.tied) == ("80%", ("60%",))
    assert "60% cannot be told from it in leakage." in advice.why


def test_of_ties_the_one_that_is_more_accurate_beyond_noise_wins():
    leaky, cheap = tried("60%", first(4), rows(1.0)), tried("80%", first(3), rows(0.97, 0.98, 0.99, 0.98))
    advice = advise([leaky, cheap], 0.03)
    assert (advice.value, advice.tied) == ("60%", ("80%",))
    assert advice.why.startswith("60% leaks no more than 80% as far as the intervals can tell, and is more accurate")


@pytest.mark.parametrize("leaks", [(19, 18), (20, 20), (19, 20)])
def test_recommends_nothing_on_noise(leaks):
    """One person of twenty less: the exact sign test has p = 1, and the interval reaches zero."""
    advice = advise(
        [tried(f"{n}%", first(n), rows(1.0)) for n in leaks[:1]] + [tried("x", first(leaks[1]), rows(1.0))], 0.02
    )
    assert (
        advice.value is None and "every interval of the difference to the undefended twin includes zero" in advice.why
    )


def test_the_level_is_shared_by_all_values_that_are_compared():
    """Four of twenty people: the 95 % bootstrap interval excludes zero, the 99 % one (five values) does not."""
    alone, crowd = [tried("a", first(16), rows(1.0))], [tried(str(k), first(16), rows(1.0)) for k in range(8)]
    assert advise(alone, 0.02).value == "a"
    assert advise(crowd, 0.02).value is None


def test_recommends_nothing_that_costs_more_than_the_tolerance():
    advice = advise([tried("40%", first(1), rows(0.96)), tried("80%", first(0), rows(0.9))], 0.02)
    assert advice.value is None
    assert advice.why == (
        "No value keeps the accuracy within 2 points of the undefended twin; the least is lost at 40%: 4 points."
    )


def test_says_when_the_loss_may_be_larger_than_the_tolerance():
    advice = advise([tried("40%", first(1), rows(1.0, 1.0, 1.0, 1.0, 0.9))], 0.02)
    assert advice.value == "40%" and "The loss of accuracy may be as large as" in advice.why


def test_without_numbers_there_is_no_recommendation():
    from dataclasses import replace

    result = run(first(5), rows(1.0))
    mute = replace(result, after=replace(result.after, attacks=()))
    assert advise([Tried("80%", *sides(mute))], 0.02).why.startswith("No value was measured")
    assert places([sides(mute)[1], sides(result)[1]]) == ("unmeasured", "front")
