import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from mi_audit.core.report import ClassValue
from mi_audit.nn.intervals import (
    by_class,
    clopper_pearson,
    crossed_bootstrap,
    mean_interval,
    paired_difference,
    share_interval,
    tables,
)

NAN = np.nan


def one_sided(hits, n):
    return clopper_pearson(hits, n, level=0.90)


@pytest.mark.parametrize(("n", "hits"), [(29, 0), (46, 1), (61, 2), (116, 6)])
def test_certifies_ten_percent_from_this_many_identities_on(n, hits):
    assert one_sided(hits, n)[1] < 0.10 < one_sided(hits, n - 1)[1]


def test_certifies_a_leak_above_ten_percent_from_forty_of_three_hundred_on():
    assert one_sided(39, 300)[0] < 0.10 < one_sided(40, 300)[0]


def test_exact_interval_solved_by_hand():
    low, high = clopper_pearson(0, 5)
    assert low == 0.0 and high == pytest.approx(1 - 0.025 ** (1 / 5))
    low, high = clopper_pearson(5, 5)
    assert high == 1.0 and low == pytest.approx(0.025 ** (1 / 5))


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_exact_interval_holds_the_share_and_mirrors(case):
    hits, n = case
    low, high = clopper_pearson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert clopper_pearson(n - hits, n) == (pytest.approx(1 - high), pytest.approx(1 - low))


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_the_exact_interval_agrees_with_statsmodels(case, level):
    expected = proportion_confint(*case, alpha=1 - level, method="beta")
    assert clopper_pearson(*case, level) == pytest.approx(expected, abs=1e-9)


def test_means_and_counts_per_class_and_seed():
    rows = by_class(np.array([1.0, 0.0, 1.0, 0.5]), np.array([3, 3, 1, 3]), np.array([0, 0, 0, 7]))
    assert rows == (
        ClassValue(label=1, seed=0, value=1.0, count=1),
        ClassValue(label=3, seed=0, value=0.5, count=2),
        ClassValue(label=3, seed=7, value=0.5, count=1),
    )
    values, counts = tables(rows)
    np.testing.assert_array_equal(values, [[1.0, 0.5], [NAN, 0.5]])
    np.testing.assert_array_equal(counts, [[1, 2], [0, 1]])


def test_one_seed_is_the_bootstrap_over_identities():
    values = np.random.default_rng(1).normal(5, 2, (1, 400))
    low, high = crossed_bootstrap(values)
    error = values.std() / 20
    assert (low, high) == (
        pytest.approx(values.mean() - 1.96 * error, abs=0.02),
        pytest.approx(values.mean() + 1.96 * error, abs=0.02),
    )


def test_variation_between_seeds_widens_the_interval():
    identities = np.random.default_rng(1).normal(0, 1, (1, 200))
    same = np.repeat(identities, 4, axis=0)
    shifted = same + np.array([[-1.0], [-0.5], [0.5], [1.0]])
    assert np.ptp(crossed_bootstrap(shifted)) > 3 * np.ptp(crossed_bootstrap(same))


def test_copies_of_a_seed_add_no_certainty():
    identities = np.random.default_rng(1).normal(0, 1, (1, 50))
    once, often = crossed_bootstrap(identities), crossed_bootstrap(np.repeat(identities, 10, axis=0))
    assert np.ptp(often) == pytest.approx(np.ptp(once), rel=0.05)


def test_missing_cells_do_not_count():
    values = np.array([[1.0, NAN, 3.0], [NAN, 2.0, NAN]])
    low, high = crossed_bootstrap(values)
    assert (low, high) == (1.0, 3.0)
    assert all(np.isnan(crossed_bootstrap(np.full((2, 3), NAN))))


def test_weights_count_images():
    values, weights = np.array([[0.0, 1.0] * 50]), np.array([[9.0, 1.0] * 50])
    low, high = crossed_bootstrap(values, weights=weights)
    assert low < 0.1 < high < 0.2


def test_the_bootstrap_repeats_and_does_not_touch_the_global_generator():
    values = np.random.default_rng(1).normal(0, 1, (2, 9))
    state = np.random.get_state()[1].copy()
    assert crossed_bootstrap(values) == crossed_bootstrap(values) != crossed_bootstrap(values, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_an_interval_of_a_unanimous_share_is_the_exact_binomial_over_identities():
    interval = share_interval(np.zeros((3, 5)))
    assert interval is not None
    assert (interval.low, interval.high) == clopper_pearson(0, 5)
    assert interval.method == "exact binomial over 5 identities"
    half = share_interval(np.full((1, 5), 0.5))
    assert half is not None and half.low < 0.2 and half.high > 0.8


def test_an_interval_of_a_share_names_what_it_resampled():
    interval = share_interval(np.array([[0.0, 1.0, 1.0], [1.0, 1.0, NAN]]))
    assert interval is not None
    assert interval.method == "bootstrap over 2 seeds x 3 identities"
    assert 0 <= interval.low < 4 / 5 < interval.high == 1


@pytest.mark.parametrize("values", [np.array([[1.0], [0.0]]), np.array([[1.0, NAN]]), np.empty((0, 0))])
def test_fewer_than_two_identities_give_no_interval(values):
    assert share_interval(values) is None
    assert mean_interval(values) is None


def test_a_paired_difference_is_tighter_than_the_parts():
    rng = np.random.default_rng(3)
    before = rng.normal(0, 1, (1, 60))
    after = before - 0.2 + rng.normal(0, 0.05, (1, 60))
    value, interval = paired_difference(before, after)
    assert value == pytest.approx(-0.2, abs=0.03)
    assert interval is not None and interval.low < -0.2 < interval.high < 0


def test_a_paired_difference_uses_common_cells_only():
    value, interval = paired_difference(np.array([[1.0, NAN, 3.0]]), np.array([[2.0, 9.0, 3.5]]))
    assert value == 0.75
    assert interval is not None and (interval.low, interval.high) == (0.5, 1.0)
    assert paired_difference(np.array([[1.0, NAN]]), np.array([[NAN, 1.0]])) == (None, None)
    assert paired_difference(np.array([[1.0]]), np.array([[2.0]])) == (1.0, None)


@pytest.mark.slow
def test_the_bootstrap_covers_simulated_shares_nearly_as_often_as_it_says():
    rng = np.random.default_rng(0)
    alpha = 0.10 * (1 / 0.5 - 1)  # intraclass correlation 0.5
    beta = 0.90 * (1 / 0.5 - 1)
    covered = []
    for _ in range(300):
        hits = rng.binomial(5, rng.beta(alpha, beta, (1, 100))) / 5
        low, high = crossed_bootstrap(hits, draws=1000)
        covered.append(low <= 0.10 <= high)
    assert 0.89 <= np.mean(covered) <= 0.98
