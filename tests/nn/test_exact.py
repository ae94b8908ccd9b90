import subprocess
import sys
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from mi_audit.nn import exact


@pytest.mark.parametrize(
    ("tau", "needed"),
    [
        (0.20, [14, 22, 30, 37, 44, 50, 57]),
        (0.10, [29, 46, 61, 76, 89, 103, 116]),
        (0.05, [59, 93, 124, 153, 181, 208, 234]),
        (0.02, [149, 236, 313, 386, 456, 523, 590]),
        (0.01, [299, 473, 628, 773, 913, 1049, 1182]),
    ],
)
def test_people_that_certify_a_share(tau, needed):
    assert [exact.required(exposed, tau) for exposed in range(7)] == needed


@pytest.mark.parametrize(
    ("total", "tau", "needed"), [(530, 0.1, [28, 45, 98]), (100, 0.1, [25, 39, 77]), (300, 0.05, [54, 83, 172])]
)
def test_fewer_are_needed_of_a_finite_set(total, tau, needed):
    assert [exact.required(exposed, tau, total) for exposed in (0, 1, 5)] == needed


@pytest.mark.parametrize(("sensitivity", "needed"), [(0.9, [32, 51, 84, 115]), (0.8, [36, 58, 95, 129])])
def test_a_judge_that_misses_some_needs_more(sensitivity, needed):
    assert [exact.required(exposed, 0.1 * sensitivity) for exposed in (0, 1, 3, 5)] == needed


def test_most_that_pass_of_three_hundred():
    assert [exact.most_passing(300, 0.1 * sensitivity) for sensitivity in (1.0, 0.9, 0.8)] == [21, 18, 16]
    assert [exact.most_passing(n, 0.1) for n in (28, 30, 61, 100, 200, 500)] == [-1, 0, 2, 4, 12, 38]


RATES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.10)


@pytest.mark.parametrize(
    ("attacked", "powers"),
    [
        (30, [1.00, 0.74, 0.55, 0.40, 0.22, 0.11, 0.042]),
        (61, [1.00, 0.98, 0.88, 0.72, 0.41, 0.19, 0.049]),
        (100, [1.00, 1.00, 0.95, 0.82, 0.44, 0.16, 0.024]),
        (200, [1.00, 1.00, 1.00, 0.99, 0.80, 0.35, 0.032]),
        (300, [1.00, 1.00, 1.00, 1.00, 0.95, 0.56, 0.046]),
        (500, [1.00, 1.00, 1.00, 1.00, 1.00, 0.74, 0.039]),
    ],
)
def test_power_to_pass_ten_percent(attacked, powers):
    found = [exact.pass_power(attacked, 0.1, rate) for rate in RATES]
    assert found == [pytest.approx(power, abs=0.006) for power in powers[:-1]] + [pytest.approx(powers[-1], abs=6e-4)]


def test_fewest_that_fail_ten_percent():
    assert exact.fewest_failing(300, 0.1) == 40 and exact.fewest_failing(100, 0.1) == 16
    assert 1 - exact.at_most(39, 300, 0.15) == pytest.approx(0.81, abs=0.005)
    assert 1 - exact.at_most(15, 100, 0.20) == pytest.approx(0.87, abs=0.005)


@pytest.mark.parametrize(
    ("rate", "eighty", "ninety"), [(0.01, 46, 61), (0.02, 61, 89), (0.03, 89, 116), (0.05, 203, 263)]
)
def test_people_for_a_wanted_power(rate, eighty, ninety):
    assert [exact.sample_size(0.1, rate, power)[0] for power in (0.8, 0.9)] == [eighty, ninety]


def test_from_the_sample_size_on_the_power_holds():
    found, allowed = exact.sample_size(0.1, 0.07, 0.8)
    assert (found, allowed) == (593, exact.most_passing(593, 0.1))
    assert exact.pass_power(592, 0.1, 0.07) < 0.8
    assert min(exact.pass_power(n, 0.1, 0.07) for n in range(593, 900)) >= 0.8


def test_no_number_certifies_what_is_not_below_the_limit():
    assert exact.sample_size(0.1, 0.1, 0.8) is None and exact.sample_size(0.1, 0.2, 0.8, total=50) is None
    assert exact.sample_size(0.1, 0.1, 0.8, total=50) == (50, 5)  # a census has no error
    assert exact.required(6, 0.1, total=50) is None and exact.required(5, 0.1, total=50) == 50


def test_bounds_solved_by_hand():
    assert exact.upper_share(0, 29) == pytest.approx(1 - 0.05 ** (1 / 29))
    assert exact.lower_share(29, 29) == pytest.approx(0.05 ** (1 / 29))
    assert (exact.lower_share(0, 29), exact.upper_share(29, 29)) == (0.0, 1.0)
    assert exact.upper_share(3, 300) == pytest.approx(0.0256, abs=5e-5)


def test_a_census_is_what_it_is():
    assert exact.lower_share(3, 100, 100) == exact.upper_share(3, 100, 100) == 0.03
    assert exact.below(10, 100, 0.1, 100) and not exact.below(11, 100, 0.1, 100)
    assert exact.above(11, 100, 0.1, 100) and not exact.above(10, 100, 0.1, 100)
    assert exact.below(3, 30, 0.1, 30)  # 0.1 * 30 is a little more than 3 in floating point, 0.3 * 10 a little less


def test_finite_bounds_solved_by_hand():
    # 2 of 5 drawn from 8, none exposed: P = C(8 - M, 5) / C(8, 5) = 21/56, 6/56, 1/56 for M = 1, 2, 3
    assert exact.hypergeometric_cdf(0, 8, 2, 5) == pytest.approx(6 / 56)
    assert exact.upper_share(0, 5, 8) == 3 / 8 and exact.upper_share(0, 5, 8, alpha=0.11) == 2 / 8
    # all 5 exposed: P = C(M, 5) / 56 = 1/56, 6/56 for M = 5, 6
    assert exact.lower_share(5, 5, 8) == 6 / 8 and exact.lower_share(5, 5, 8, alpha=0.01) == 5 / 8


@given(st.integers(1, 60), st.data())
def test_hypergeometric_tail_agrees_with_scipy(total, data):
    drawn, marked = data.draw(st.integers(0, total)), data.draw(st.integers(0, total))
    exposed = data.draw(st.integers(0, total))
    assert exact.hypergeometric_cdf(exposed, total, marked, drawn) == pytest.approx(
        stats.hypergeom.cdf(exposed, total, marked, drawn), abs=1e-9
    )


@given(st.integers(1, 80), st.data(), st.floats(0.01, 0.5))
def test_bounds_agree_with_scipy(attacked, data, alpha):
    exposed = data.draw(st.integers(0, attacked))
    interval = stats.binomtest(exposed, attacked).proportion_ci(1 - 2 * alpha, method="exact")
    assert exact.lower_share(exposed, attacked, alpha=alpha) == pytest.approx(interval.low, abs=1e-9)
    assert exact.upper_share(exposed, attacked, alpha=alpha) == pytest.approx(interval.high, abs=1e-9)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.001, 0.49))
def test_bounds_agree_with_statsmodels(case, alpha):
    low, high = proportion_confint(*case, alpha=2 * alpha, method="beta")
    assert exact.lower_share(*case, alpha=alpha) == pytest.approx(low, abs=1e-9)
    assert exact.upper_share(*case, alpha=alpha) == pytest.approx(high, abs=1e-9)


@given(st.integers(1, 80), st.data(), st.floats(0.01, 0.99), st.booleans())
def test_deciding_by_one_tail_is_deciding_by_the_bound(attacked, data, tau, finite):
    exposed = data.draw(st.integers(0, attacked))
    total = data.draw(st.integers(attacked, 120)) if finite else None
    assert exact.below(exposed, attacked, tau, total) == (exact.upper_share(exposed, attacked, total) <= tau + 1e-9)
    assert exact.above(exposed, attacked, tau, total) == (exact.lower_share(exposed, attacked, total) > tau + 1e-9)
    assert not (exact.below(exposed, attacked, tau, total) and exact.above(exposed, attacked, tau, total))


@pytest.mark.parametrize("marked", [0, 3, 10, 17, 30])
def test_finite_bounds_miss_the_truth_in_at_most_five_percent_of_all_draws(marked):
    total, drawn = 30, 12
    odds = [comb(marked, x) * comb(total - marked, drawn - x) / comb(total, drawn) for x in range(drawn + 1)]
    above = sum(p for x, p in enumerate(odds) if p and exact.upper_share(x, drawn, total) < marked / total)
    below = sum(p for x, p in enumerate(odds) if p and exact.lower_share(x, drawn, total) > marked / total)
    assert above <= 0.05 and below <= 0.05


def test_mcnemar_solved_by_hand():
    assert exact.mcnemar(0, 0) == exact.mcnemar_more(0, 0) == exact.mcnemar_more(4, 0) == 1.0
    assert exact.mcnemar_more(0, 5) == pytest.approx(1 / 32)
    assert exact.mcnemar(0, 5) == exact.mcnemar(5, 0) == pytest.approx(2 / 32)
    assert exact.mcnemar_more(1, 5) == pytest.approx(7 / 64)
    assert exact.mcnemar(3, 3) == 1.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_agrees_with_scipy(before, after):
    if before + after:
        assert exact.mcnemar(before, after) == pytest.approx(stats.binomtest(after, before + after).pvalue)
        more = stats.binomtest(after, before + after, alternative="greater").pvalue
        assert exact.mcnemar_more(before, after) == pytest.approx(more)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 50))
def test_mcnemar_agrees_with_statsmodels(before, after, alike):
    expected = mcnemar([[alike, before], [after, alike]], exact=True).pvalue
    assert exact.mcnemar(before, after) == pytest.approx(expected, rel=1e-9)


def test_deciding_imports_neither_torch_nor_scipy_stats():
    code = (
        "import sys, mi_audit.audit.audit_v1, mi_audit.audit.regression; "
        "sys.exit(bool({'torch', 'scipy.stats', 'pandas', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
