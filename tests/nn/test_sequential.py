import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_audit.nn.sequential import decide, evidence_above, evidence_below, lower_share, upper_share

LIMIT = np.log(20)


def first_pass(exposed):
    outcomes = np.zeros(400)
    outcomes[:exposed] = 1
    return int(np.argmax(evidence_below(outcomes, 0.1) >= LIMIT)) + 1


def stopped(runs, tau, total=None):
    """Share of runs in which the evidence against `tau` or more, and against `tau` or less, ever suffices."""
    return tuple(
        float((evidence(runs, tau, total) >= LIMIT).any(axis=1).mean()) for evidence in (evidence_below, evidence_above)
    )


def shuffled(total, marked, runs, seed=0):
    population = (np.arange(total) < marked).astype(float)
    return np.random.default_rng(seed).permuted(np.tile(population, (runs, 1)), axis=1)


def test_people_after_which_ten_percent_is_refuted():
    assert [first_pass(exposed) for exposed in range(5)] == [35, 64, 85, 105, 123]


def test_evidence_solved_by_hand():
    # a uniform prior on [0.5, 1] against 0.5 after one exposed: (1 - 0.25) / 2 / 0.5 / 0.5 = 1.5
    assert evidence_above(np.ones(1), 0.5) == pytest.approx(np.log([1.5]))
    # of 4, at least 2 are exposed under the hypothesis. Bet on the mean of Beta(0.5, 5) below 0.5, about 0.086
    grid = np.linspace(0, 0.5, 2_000_001)[1:]
    density = grid**-0.5 * (1 - grid) ** 4
    mean = (grid * density).sum() / density.sum()
    assert evidence_below(np.zeros(1), 0.5, 4) == pytest.approx(np.log([(1 - mean) / 0.5]), abs=1e-3)


def test_the_evidence_is_a_fair_bet_at_the_limit():
    for total in (None, 40):
        mean = 0.3  # of the first outcome, under the hypothesis
        for evidence in (evidence_below, evidence_above):
            hit, miss = (np.exp(evidence(np.array([outcome]), 0.3, total)[0]) for outcome in (1.0, 0.0))
            assert mean * hit + (1 - mean) * miss == pytest.approx(1.0)


def test_what_the_hypothesis_rules_out_refutes_it():
    assert evidence_below(np.zeros(8), 0.3, 10)[-1] == np.inf  # 3 of 10 cannot be among the last 2
    assert evidence_above(np.ones(4), 0.3, 10)[-1] == np.inf  # more than 3 of 10 are exposed already
    assert np.isfinite(evidence_below(np.ones(9), 0.3, 10)).all()


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_evidence_is_a_number(outcomes, tau):
    runs = np.array(outcomes)
    for total in (None, 60, len(outcomes)):
        for evidence in (evidence_below, evidence_above):
            assert not np.isnan(evidence(runs, tau, total)).any()


@settings(max_examples=30)  # each is 160 halvings
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40))
def test_bounds_hold_the_share_that_was_seen(outcomes):
    runs = np.array(outcomes)
    assert lower_share(runs) <= runs.mean() <= upper_share(runs)
    assert lower_share(runs, 50) <= upper_share(runs, 50)


def test_bounds_agree_with_the_decision():
    outcomes = np.zeros(64)
    outcomes[20] = 1
    assert upper_share(outcomes[:63]) > 0.1 >= upper_share(outcomes)
    assert decide(outcomes, outcomes, 0.1, 0.1).seen == 64
    assert decide(outcomes[:63], outcomes[:63], 0.1, 0.1).state == "CONTINUE"


def test_what_refutes_both_decides_nothing():
    low, high = np.zeros(60), np.ones(60)
    for outcomes in (np.concatenate([low, high]), np.concatenate([high, *[low] * 20])):
        for total in (None, 2000):
            assert decide(outcomes, outcomes, 0.1, 0.1, total).state == "CONTINUE"
            assert decide(outcomes[:60], outcomes[:60], 0.1, 0.1, total).state != "CONTINUE"


def test_a_share_beyond_the_limit_takes_a_decision_back():
    outcomes = np.concatenate([np.zeros(60), np.ones(8)])
    assert (evidence_above(outcomes, 0.1) < np.log(20)).all()
    assert decide(outcomes, outcomes, 0.1, 0.1).state == "CONTINUE"
    assert decide(outcomes[:-3], outcomes[:-3], 0.1, 0.1).state == "PASS"  # 5 of 65


def test_unknown_outcomes_neither_pass_nor_fail():
    nobody, everybody = np.zeros(60), np.ones(60)
    assert decide(nobody, nobody, 0.1, 0.1).state == "PASS"
    assert decide(everybody, everybody, 0.1, 0.1).state == "FAIL"
    assert decide(everybody, nobody, 0.1, 0.1).state == "CONTINUE"


def test_a_judge_that_misses_some_has_to_see_more():
    outcomes = np.zeros(100)
    assert decide(outcomes, outcomes, 0.08, 0.1).seen > decide(outcomes, outcomes, 0.1, 0.1).seen


@pytest.mark.parametrize("total", [None, 100])
def test_peeking_after_everybody_costs_no_error(total):
    below, above = stopped(shuffled(100, 10, 1000), 0.1, total)
    assert below <= 0.06 and above <= 0.06  # 0.05 and two standard errors


@pytest.mark.slow
def test_false_passes_and_false_fails_stay_below_alpha():
    error = 3 * np.sqrt(0.05 * 0.95 / 4000)
    for total in (100, 300, 530):
        runs = shuffled(total, total // 10, 4000)
        assert max(stopped(runs, 0.1, total)) <= 0.05 + error
        assert max(stopped(runs, 0.1)) <= 0.05
    runs = (np.random.default_rng(1).random((4000, 500)) < 0.1).astype(float)
    assert max(stopped(runs, 0.1)) <= 0.05 + error
    leaky = (np.random.default_rng(2).random((1000, 500)) < 0.2).astype(float)
    assert stopped(leaky, 0.1)[1] > 0.99


@pytest.mark.slow
def test_knowing_the_number_of_people_saves_people():
    runs = shuffled(300, 15, 2000)
    seen = [np.argmax(evidence_below(runs, 0.1, total) >= LIMIT, axis=1) + 1 for total in (300, None)]
    assert seen[0].mean() == pytest.approx(118, abs=5) and seen[1].mean() == pytest.approx(178, abs=6)
