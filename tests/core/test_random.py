import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mi_audit.core.random import Streams

ROWS, DRAWS = 2000, 500
SIGMAS = 4.5  # a fair generator exceeds this once in 150,000 tests; the seed is fixed, so a pass stays a pass


@pytest.fixture(scope="module")
def streams():
    return Streams.of(0, torch.arange(ROWS) // 5, torch.arange(ROWS) % 5)


@pytest.fixture(scope="module")
def normal(streams):
    return streams.normal("start", DRAWS).double()


@pytest.fixture(scope="module")
def uniform(streams):
    return streams.uniform("crop", DRAWS)


def sigmas(product):
    return abs(product.double().mean().item()) * math.sqrt(product.numel())


def test_normals_are_standard_normal(normal):
    assert sigmas(normal) < SIGMAS
    assert abs(normal.var().item() - 1) < SIGMAS * math.sqrt(2 / normal.numel())
    assert stats.kstest(normal.flatten()[:200_000].numpy(), "norm").pvalue > 1e-4


def test_rows_are_independent(normal):
    correlations = torch.corrcoef(normal).fill_diagonal_(0)
    pairs = ROWS * (ROWS - 1) / 2
    assert correlations.abs().max() * math.sqrt(DRAWS) < stats.norm.isf(1e-3 / pairs)
    assert (correlations.square().sum() / (2 * pairs)).sqrt() * math.sqrt(DRAWS) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("lag", [1, 2, 5, 10])
def test_neighbouring_keys_and_draws_are_independent(normal, lag):
    assert sigmas(normal[lag:] * normal[:-lag]) < SIGMAS
    assert sigmas(normal[:, lag:] * normal[:, :-lag]) < SIGMAS


@pytest.mark.parametrize("other", ["name", "step", "seed"])
def test_names_steps_and_seeds_are_independent(streams, normal, other):
    seeded = Streams.of(1, torch.arange(ROWS) // 5, torch.arange(ROWS) % 5)
    draws = {
        "name": lambda: streams.normal("stop", DRAWS),
        "step": lambda: streams.normal("start", DRAWS, step=1),
        "seed": lambda: seeded.normal("start", DRAWS),
    }[other]().double()
    assert sigmas(draws * normal) < SIGMAS
    assert sigmas(draws[1:] * normal[:-1]) < SIGMAS
    assert sigmas(draws[:, 1:] * normal[:, :-1]) < SIGMAS


def test_consecutive_steps_of_one_stream_are_uniform_and_independent(streams):
    steps = torch.stack([streams[:8].uniform("crop", 4, step=step) for step in range(1000)]) - 0.5
    counts = torch.histc(steps, 50, -0.5, 0.5).numpy()
    assert stats.chisquare(counts).pvalue > 1e-4
    assert all(sigmas(12 * steps[lag:] * steps[:-lag]) < SIGMAS for lag in (1, 2, 3))


def test_every_column_and_every_row_is_uniform(uniform):
    assert uniform.min() >= 0 and uniform.max() < 1
    for table in (uniform.T, uniform):
        counts = torch.stack([torch.histc(line, 25, 0, 1) for line in table[:400]])
        pvalues = stats.chisquare(counts.numpy(), axis=1).pvalue
        assert stats.kstest(pvalues, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("shift", [0, 8, 16])
def test_every_byte_of_the_bits_is_uniform(uniform, shift):
    values = ((uniform * 2**24).long() >> shift) & 255
    assert stats.chisquare(torch.bincount(values.flatten(), minlength=256).numpy()).pvalue > 1e-4


def test_pairs_of_neighbouring_rows_fill_the_square_evenly(uniform):
    cells = (uniform[1:] * 16).long() * 16 + (uniform[:-1] * 16).long()
    assert stats.chisquare(torch.bincount(cells.flatten(), minlength=256).numpy()).pvalue > 1e-4


def test_no_two_streams_share_a_key():
    labels, restarts = torch.arange(-1, 199).repeat_interleave(200), torch.arange(200).repeat(200)
    keys = torch.cat([Streams.of(seed, labels, restarts).keys for seed in (0, 1, 2, 2**63)])
    assert len(keys.unique()) == len(keys)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**70), cut=st.integers(0, 6), step=st.integers(0, 10_000))
def test_a_draw_does_not_depend_on_the_rows_beside_it(seed, cut, step):
    labels, restarts = torch.arange(6), torch.arange(6) % 2
    whole = Streams.of(seed, labels, restarts)
    alone = Streams.of(seed, labels[cut:], restarts[cut:])
    assert torch.equal(whole.normal("start", 3, 2, step=step)[cut:], alone.normal("start", 3, 2, step=step))
    assert torch.equal(whole[cut:].keys, alone.keys)


def test_a_step_per_row_draws_what_single_steps_draw(streams):
    steps = torch.tensor([7, 0, 123_456])
    together = streams[:3].uniform("crop", 5, step=steps)
    for row, step in enumerate(steps.tolist()):
        assert torch.equal(together[row : row + 1], streams[row : row + 1].uniform("crop", 5, step=step))


def splitmix64(value):
    """The published finaliser in Python's unbounded integers."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ value >> shift) * factor % 2**64
    return value ^ value >> 31


def test_numbers_are_those_of_the_published_generator_and_never_change():
    streams = Streams.of(0, torch.tensor([0, 1]), torch.tensor([0, 0]))
    golden, keys = 0x9E3779B97F4A7C15, []
    for label in (0, 1):
        keys.append(splitmix64((splitmix64(golden * (label + 1) % 2**64) + golden) % 2**64))
    assert [key % 2**64 for key in streams.keys.tolist()] == keys
    assert streams.uniform("start", 1).flatten().tolist() == [0.6004460453987122, 0.36059534549713135]


def test_branches_are_streams_of_their_own_even_when_they_branch_again(streams):
    few = streams[:50]
    assert few.branches(1) is few
    once, twice = few.branches(6), few.branches(2).branches(3)
    assert len(few.keys.tolist() + once.keys.tolist() + twice.keys.tolist()) == len(
        {*few.keys.tolist(), *once.keys.tolist(), *twice.keys.tolist()}
    )
    # those of a row side by side, whatever the other rows are
    assert torch.equal(few[7:8].branches(6).keys, once.keys[7 * 6 : 8 * 6])
    draws = once.normal("start", DRAWS).double().view(50, 6, DRAWS)
    assert (draws[:, 0] * draws[:, 1]).mean().abs() < SIGMAS / math.sqrt(50 * DRAWS)
