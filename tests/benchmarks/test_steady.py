import torch

from mi_audit.core.run import Run
from mi_audit.nn import descent, pool
from tests.benchmarks.paired import Timing
from tests.benchmarks.steady import every_step_mixed, instead, uncompared, with_polish


def test_one_step_in_ten_is_single():
    timing = Timing("cpu", {"32": (10.0, 20.0), "bf16": (2.0, 4.0)}, {}, (0.0, 0.0))
    assert with_polish(timing, "32", "bf16").seconds == {"32": (10.0, 20.0), "bf16": (2.8, 5.6)}


def test_what_is_refused_takes_as_long_as_single_precision():
    timing = Timing("cpu", {"plain": (30.0,), "32": (10.0,), "bf16": (2.0,)}, {}, (0.0, 0.0))
    assert instead(timing, "32", "bf16").seconds == {"plain": (30.0,), "32": (10.0,), "bf16": (10.0,)}


def test_short_runs_are_timed_without_their_first_and_last_steps():
    run, device = Run(precision="bf16"), torch.device("cpu")
    before = descent.mixed_steps(3), descent.decided
    with every_step_mixed():
        assert descent.mixed_steps(3) == 3
        for module in (descent, pool):
            assert module.decided(run, "optimise", device, torch.zeros_like) is run
    assert (descent.mixed_steps(3), descent.decided) == before and descent.mixed_steps(3) == 2


def test_the_last_steps_stay_single_where_only_the_comparison_is_left_out():
    run = Run(precision="bf16")
    with uncompared():
        assert descent.mixed_steps(3) == 2 and descent.decided(run, "optimise", torch.device("cpu"), len) is run
