"""Gradients solved by hand in both arithmetics: 1 + 2^-9 is 1 in bfloat16, which keeps eight binary digits."""

import logging

import pytest
import torch
from torch import nn

from mi_audit.core.arithmetic import Decision
from mi_audit.core.random import Streams
from mi_audit.core.run import Averaging, Run
from mi_audit.nn.descent import Descent
from mi_audit.nn.mixed_precision import decided, mixed_steps, networks, spread
from mi_audit.nn.optimisers import Adam, Optimiser
from mi_audit.nn.pool import Pool
from mi_audit.nn.robust_search import RobustSearch
from tests.toy import ToyPrior, target

FINE = 2.0**-9  # half of the step from 1 to the next number of bfloat16


def linear(weight, latents):
    """A network of one layer; autocast rounds the weights and the latents, and the images it gives."""
    return nn.functional.linear(latents, torch.tensor(weight))[:, :, None, None]


def first_pixel(images, labels):
    return (images[:, 0, 0, 0] - labels).square()


def search(run, weight=((1.0, 0.0), (0.0, 1.0)), rows=12, **slots):
    slots = {"stage": "climb", "steps": 20, "optimiser": Adam(0.1), "identity": first_pixel} | slots
    labels = torch.arange(rows) % 3
    streams = run.streams(labels, torch.arange(rows))
    plan = Descent(**{"decode": lambda latents, _: linear(weight, latents)} | slots)
    return plan.search(streams.normal("start", 2), labels, streams, run)


def mixed(**fields):
    return Run(precision="bf16", **fields)


def cancelling(images, labels):
    """`s^2 / 2` of the small difference `s = u - v` of two large numbers; autocast computes them in a layer."""
    return (images[:, 0, 0, 0] - images[:, 1, 0, 0]).square() / 2


def test_a_search_whose_gradient_is_right_in_bfloat16_uses_it():
    run = mixed()
    search(run)
    (decision,) = run.decisions
    assert (decision.stage, decision.asked, decision.used, decision.reason) == ("climb", "bf16", "bf16", "")
    assert 0.99 < decision.cosine <= 1


def test_a_small_difference_of_large_numbers_is_refused_with_the_reason(caplog):
    # u = 256 + a, v = 256 + b. The slope of (u - v)^2 / 2 in (a, b) is (s, -s) with s = a - b. In bfloat16 numbers from
    # 256 on are 2 apart, so that u = v = 256 for all a and b within 1: s is 0 there, and the cosine with it.
    def decode(latents, labels):
        return linear(((1.0, 0.0, 256.0), (0.0, 1.0, 256.0)), nn.functional.pad(latents, (0, 1), value=1.0))

    run, start = mixed(), torch.tensor([[0.5, 0.25], [-0.5, 0.5], [0.25, -0.75]])
    plan = Descent(stage="climb", steps=10, decode=decode, identity=cancelling, optimiser=Adam(0.1))
    labels = torch.zeros(3, dtype=torch.long)
    with caplog.at_level(logging.WARNING):
        found = plan.search(start, labels, run.streams(labels, torch.arange(3)), run)
    assert run.decisions == [Decision("climb", "bf16", "32", 0.0, "the median cosine between both is 0.00, below 0.8")]
    assert "climb: computed in single precision instead of bfloat16: the median cosine" in caplog.text
    exact = plan.search(start, labels, run.streams(labels, torch.arange(3)), Run())
    assert torch.equal(found.latents, exact.latents) and found.curve == exact.curve


def test_what_is_not_finite_in_bfloat16_is_refused():
    # 1 / (1.00390625 x - 1) at x = 1: in bfloat16 1.00390625 = 1 + 2^-8 is 1 (ties to even), and the slope infinite
    run = mixed()
    plan = Descent(
        stage="climb", steps=10, optimiser=Adam(0.1),
        decode=lambda latents, _: linear(((1 + 2.0**-8, 0.0),), latents),
        identity=lambda images, _: 1 / (images[:, 0, 0, 0] - 1),
    )  # fmt: skip
    labels = torch.zeros(1, dtype=torch.long)
    plan.search(torch.ones(1, 2), labels, run.streams(labels, labels), run)
    assert run.decisions == [Decision("climb", "bf16", "32", None, "not all numbers are finite")]


def cosine_of(exact, rounded):
    run = mixed()
    decided(run, "x", torch.device("cpu"), lambda run: torch.tensor(rounded if run.precision == "bf16" else exact))
    return run.decisions[0]


def test_the_median_over_the_rows_decides():
    # the cosines are 0.6, 0.8 and 1, with lengths that do not count
    found = cosine_of([[5.0, 0.0]] * 3, [[0.3, 0.4], [8.0, 6.0], [2.0, 0.0]])
    assert (found.cosine, found.used) == (0.8, "bf16")
    found = cosine_of([[5.0, 0.0]] * 3, [[0.3, 0.4], [7.9, 6.1], [2.0, 0.0]])
    assert found.used == "32"


def test_rows_without_a_slope_agree_when_both_have_none():
    assert cosine_of([[0.0, 0.0]], [[0.0, 0.0]]).cosine == 1
    assert cosine_of([[0.0, 0.0]], [[1.0, 0.0]]).cosine == cosine_of([[1.0, 0.0]], [[0.0, 0.0]]).cosine == 0


def test_single_precision_is_not_questioned():
    run = Run()
    assert decided(run, "x", torch.device("cpu"), lambda _: pytest.fail("asked")) is run and not run.decisions


@pytest.mark.parametrize("sizes", [(1, 64)])
def test_the_decision_does_not_depend_on_the_batch_size_nor_on_what_was_drawn_before(sizes):
    def noisy(images, labels):
        return first_pixel(images + 0.1 * torch.randn_like(images), labels)

    def shade(images, streams, step):
        return images * streams.uniform("shade", 2, 1, 1, step=step)

    decisions = []
    for size in sizes:
        run = mixed(batch_size=size)
        torch.rand(size)
        search(
            run, ((1.0, 0.3), (0.7, 1.0)), views=(lambda x, s, t: x * s.uniform("v", 2, 1, 1, step=t),), identity=noisy
        )
        decisions += run.decisions
    assert decisions[0] == decisions[1]


def test_the_gate_leaves_random_numbers_work_queries_and_progress_alone():
    steps, seen = [], torch.get_rng_state()
    run = mixed(on_step=lambda *event: steps.append(event))

    def show(run):
        run.work["target_forward"] += 1
        run.queries["white-box"] += 1
        torch.rand(3)
        return torch.ones(1, 1)

    decided(run, "x", torch.device("cpu"), show)
    assert not run.work and not run.queries and not steps and torch.equal(torch.get_rng_state(), seen)


def test_both_arithmetics_are_shown_the_same_random_numbers():
    drawn = []

    def show(run):
        drawn.append(torch.rand(2, 2))
        return drawn[-1]

    decided(mixed(), "x", torch.device("cpu"), show)
    assert torch.equal(*drawn)


def test_rows_are_compared_one_at_a_time_across_all_classes():
    seen = []

    def watched(images, labels):
        seen.append((len(labels), labels.tolist()))
        return first_pixel(images, labels)

    labels = torch.arange(3).repeat_interleave(4)
    run = mixed()
    plan = Descent(stage="x", steps=2, decode=lambda z, _: linear(((1.0,),), z), identity=watched, optimiser=Adam(0.1))
    plan.search(torch.ones(12, 1), labels, run.streams(labels, torch.arange(12)), run)
    assert [size for size, _ in seen] == [1] * 16 + [12, 12]
    assert {label for _, (label,) in seen[:8]} == {0, 1, 2} and seen[:8] == seen[8:16]
    assert spread(12, 8).tolist() == [0, 2, 3, 5, 6, 8, 9, 11] and spread(3, 8).tolist() == [0, 1, 2]


def test_a_penalty_that_no_network_takes_part_in_does_not_vouch_for_the_networks():
    def opposite(images, _):
        return -images[:, 0, 0, 0] if torch.is_autocast_enabled("cpu") else images[:, 0, 0, 0]

    run = mixed()
    search(run, identity=opposite, penalty=lambda latents, *_: 1e6 * latents.sum(dim=1))
    assert (run.decisions[0].used, run.decisions[0].cosine) == ("32", -1)


@pytest.mark.parametrize(("steps", "mixed"), [(1, 0), (2, 1), (10, 9), (11, 9), (100, 90), (101, 90)])
def test_the_last_tenth_of_the_steps_and_at_least_one_is_exact(steps, mixed):
    assert mixed_steps(steps) == mixed


class Watched(Optimiser):
    """Keeps the formats it is given and gives back."""

    def __init__(self, rule):
        self.rule, self.formats = rule, set()

    def start(self, latents):
        return self.rule.start(latents)

    def update(self, latents, gradient, state, step):
        moved, new = self.rule.update(latents, gradient, state, step)
        self.formats |= {part.dtype for part in (latents, gradient, moved, *state, *new)}
        return moved, new


@pytest.mark.parametrize("averaging", [None, Averaging("paa", 2)])
def test_networks_alone_compute_in_bfloat16_and_not_in_the_last_steps(averaging):
    inside, outside, formats = [], [], []

    def spy(images, labels):
        inside.append(torch.is_autocast_enabled("cpu"))
        formats.append(images.dtype)
        return first_pixel(images, labels)

    def free(latents, streams, step):
        outside.append(torch.is_autocast_enabled("cpu"))
        return latents

    def penalty(latents, streams, step):
        return free(latents, streams, step).sum(dim=1)

    rule, run = Watched(Adam(0.1)), mixed(averaging=averaging, batch_size=64)
    found = search(run, identity=spy, sample=free, penalty=penalty, optimiser=rule, rows=1, steps=20,
        realism=lambda images: inside.append(torch.is_autocast_enabled("cpu")) or images[:, 1, 0, 0])  # fmt: skip
    calls = len(inside) // 22  # 2 passes of the gate and 20 steps
    inside = inside[2 * calls :]
    assert inside == [True] * 18 * calls + [False] * 2 * calls if averaging is None else inside[-2 * 2 :] == [False] * 4
    assert not any(outside) and set(formats) == rule.formats == {torch.float32} == {found.latents.dtype}


def test_gradients_are_taken_outside_so_that_guarded_parts_stay_exact():
    # The network guards a layer of weight 1 + 2^-9, which bfloat16 would round to 1 on the way back.
    def guarded(latents, _):
        with torch.autocast("cpu", enabled=False):
            return linear(((1 + FINE,),), latents)

    class Kept(Watched):
        def update(self, latents, gradient, state, step):
            self.formats |= set(gradient.flatten().tolist())
            return super().update(latents, gradient, state, step)

    for averaging in (None, Averaging("paa", 2)):
        rule = Kept(Adam(0.1))
        plan = Descent(stage="x", steps=2, decode=guarded, identity=lambda x, _: x[:, 0, 0, 0], optimiser=rule)
        labels = torch.zeros(1, dtype=torch.long)
        run = mixed(averaging=averaging)
        plan.search(torch.ones(1, 1), labels, run.streams(labels, labels), run)
        assert {1 + FINE} == {value for value in rule.formats if isinstance(value, float)}


def test_a_caller_in_mixed_precision_gets_single_precision_when_that_is_asked():
    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        search(Run(), identity=lambda x, y: seen.append(torch.is_autocast_enabled("cpu")) or first_pixel(x, y))
    assert seen == [False] * 20


def test_only_one_step_is_only_the_last():
    run = mixed()
    search(run, steps=1)
    assert not run.decisions


def test_networks_follow_the_run():
    with networks(mixed(), torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
        with networks(mixed(), torch.device("cpu"), exact=True):
            assert not torch.is_autocast_enabled("cpu")


SEARCH = RobustSearch(
    pool=40, truncation=0.5, restarts=4, steps=10, lr=0.1, betas=(0.1, 0.1), crop=1.0,
    gentle=(0.9, 1.0), views=1, harsh=(1.0, 1.0), stretch=(1.0, 1.0), keep=1, flips=False,
)  # fmt: skip


def test_returned_confidence_is_scored_in_single_precision():
    run = mixed()
    ranked = SEARCH.search(target(), ToyPrior(), torch.tensor([2, 0]), run)
    exact = target().scores(ToyPrior().w.decode(ranked.latents)).gather(1, ranked.labels[:, None]).squeeze(1)
    shown = SEARCH.shown(ToyPrior(), ranked, 4, run)
    assert [(one.stage, one.used) for one in run.decisions] == [("pool", "bf16"), ("optimise", "bf16")]
    torch.testing.assert_close(shown.confidence, exact, rtol=1e-6, atol=0)
    assert torch.equal(shown.images, ToyPrior().w.decode(ranked.latents))


def test_a_pool_is_scored_in_bfloat16_unless_that_ranks_otherwise():
    whole, states = target(), []
    scores = whole.scores

    def spy(images):
        states.append((len(images), torch.is_autocast_enabled("cpu")))
        return scores(images)

    whole.scores = spy
    run = mixed(batch_size=16)
    Pool(size=40, mirror=False).draw(whole, ToyPrior(), torch.arange(4), 2, run)
    assert states == [(1, False)] * 32 + [(1, True)] * 32 + [(16, True), (16, True), (8, True)]
    assert run.decisions[0].cosine > 0.99 and run.work == {"generator_forward": 40, "target_forward": 40}

    def backwards(images):
        return 1 - scores(images) if torch.is_autocast_enabled("cpu") else scores(images)

    whole.scores = backwards
    run = mixed()
    drawn = Pool(size=40, mirror=False).draw(whole, ToyPrior(), torch.arange(4), 2, run)
    assert run.decisions[0].used == "32" and run.decisions[0].cosine < 0
    whole.scores = scores
    assert torch.equal(drawn.best, Pool(size=40, mirror=False).draw(whole, ToyPrior(), torch.arange(4), 2, Run()).best)


def test_streams_are_functions_so_that_the_search_draws_what_it_would_without_the_gate():
    keys = []

    def watch(images, streams, step):
        keys.append(streams.keys.tolist())
        return images

    run = mixed()
    search(run, views=(watch,), rows=2, steps=2)
    expected = Streams.of(0, torch.tensor([0, 1]), torch.arange(2)).keys.tolist()
    assert keys == [expected[:1], expected[1:]] * 2 + [expected] * 2
