import functools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as some

from mi_audit.core.early_stop import EarlyStop, Taken
from mi_audit.core.errors import ConfigError, Diverged
from mi_audit.core.run import Averaging, Run
from mi_audit.nn.descent import Descent
from mi_audit.nn.early_stopping import SCHEDULED, converged, leaving, polished, window_of
from mi_audit.nn.optimisers import RampedAdam, WarmCosine
from tests.nn.test_descent import PlainSteps, Waits, decode, distance

RULE = EarlyStop(window=0.1, least=2, tolerance=0.01, looks=2)  # of 20 steps: a look at every second one
CURVATURE = torch.tensor([1 / 4, 1 / 8, 0.0, 0.0])
SLOPE = torch.tensor([0.0, 0.0, 1.0, 0.0])
# A step multiplies z by r = 1 - 2 curvature, so that a window of two steps multiplies the loss by q = r^4: 1/16 for
# label 0, (3/4)^4 = 0.316 for label 1. Window i brings q^(i-2) (1 - q) / (1 - q^(i-1)) of all progress until then:
#   label 0: 1, 0.059, 0.0037 | 0.0002 -> the fourth and fifth window are idle: 10 steps
#   label 1: 1, 0.240, 0.071, 0.022, 0.0069 | 0.0022 -> the sixth and seventh: 14 steps
#   label 2: falls by the same in every step, 1, 1/2, 1/3, ... 1/9: never; label 3: never falls at all
TAKEN = {0: 10, 1: 14, 2: 20, 3: 20}


def loss(images, labels):
    z = images[:, 0, 0, 0]
    return CURVATURE[labels] * z.square() - SLOPE[labels] * z + 5


def descent(**slots):
    return Descent(
        **{"stage": "roll", "steps": 20, "decode": decode, "identity": loss, "optimiser": PlainSteps()} | slots
    )


def search(labels, run, plan=None, start=None):
    labels = torch.tensor(labels)
    streams = run.streams(labels, torch.zeros_like(labels))
    start = torch.stack([4.0 + labels, labels * 1.0], dim=1) if start is None else start
    return (plan or descent()).search(start, labels, streams, run)


def test_rows_leave_when_their_loss_has_ceased_to_fall():
    run = Run(early_stop=RULE)
    found = search([2, 0, 3, 1], run)
    assert found.latents[:, 0].tolist() == pytest.approx([6 + 20, 4 * 0.5**10, 7, 5 * 0.75**14])
    assert found.latents[:, 1].tolist() == [2, 0, 3, 1]  # in their order
    assert run.taken == {Taken("roll", 20, 10): 1, Taken("roll", 20, 14): 1, Taken("roll", 20, 20): 2}
    passes = 10 + 14 + 20 + 20
    assert run.work == {f"{net}_{way}": passes for net in ("generator", "target") for way in ("forward", "backward")}


def test_the_last_loss_of_a_row_stands_for_the_steps_it_leaves_out():
    losses = search([0, 2], Run(early_stop=RULE)).curve.losses
    for step in range(20):
        still, falling = 5 + 4 * 0.25 ** min(step, 9), 5 - (6 + step)
        assert losses[step] == pytest.approx((still + falling) / 2)


def test_without_the_option_all_steps_are_taken():
    run = Run()
    found = search([0, 1], run)
    assert found.latents[:, 0].tolist() == pytest.approx([4 * 0.5**20, 5 * 0.75**20])
    assert not run.taken and run.work["target_forward"] == 40


@functools.cache
def alone(label, bits):
    return search([label], Run(early_stop=RULE, precision="bf16" if bits == 16 else "32")).latents


@limits(max_examples=30, deadline=None)
@given(
    some.lists(some.sampled_from(range(4)), min_size=1, max_size=6), some.integers(1, 7), some.sampled_from([32, 16])
)
def test_neither_batch_size_nor_neighbours_change_when_a_row_leaves(labels, size, bits):
    run = Run(batch_size=size, early_stop=RULE, precision="bf16" if bits == 16 else "32")
    found = search(labels, run)
    assert torch.equal(found.latents, torch.cat([alone(label, bits) for label in labels]))
    polish = {0: 1, 1: 2, 2: 0, 3: 0} if bits == 16 else Counter()
    assert run.work["target_forward"] == sum(TAKEN[label] + polish[label] for label in labels)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_progress_ends_once_and_at_all_steps(size):
    seen = []
    run = Run(batch_size=size, early_stop=RULE, on_step=lambda *event: seen.append(event))
    search([0, 2, 1, 0], run)
    done = [done for _, done, _ in seen]
    assert {total for _, _, total in seen} == {80} and done == sorted(done) and done.count(80) == 1


def test_rows_that_all_leave_end_the_search():
    calls = []

    def watched(images, labels):
        calls.append(len(labels))
        return loss(images, labels)

    seen = []
    run = Run(early_stop=RULE, on_step=lambda *event: seen.append(event))
    search([0, 1, 0], run, descent(identity=watched))
    assert calls == 10 * [3] + 4 * [1] and seen[-1] == ("roll", 60, 60)


def test_rows_that_were_parted_for_want_of_memory_leave_as_well():
    taken = []

    def crowded(images, labels):
        if len(taken) >= 3 and len(labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        taken.append(len(labels))
        return loss(images, labels)

    calm, pressed = Run(early_stop=RULE), Run(early_stop=RULE)
    labels = [1, 0, 2, 0, 3]
    found = search(labels, pressed, descent(identity=crowded))
    wanted = search(labels, calm)
    assert torch.equal(found.latents, wanted.latents) and found.curve == wanted.curve
    assert pressed.taken == calm.taken and pressed.work == calm.work


def test_rows_keep_stream_start_and_memory_of_the_optimiser():
    def noisy(images, streams, step):
        return images + 0.1 * streams.normal("noise", 2, 1, 1, step=step)

    def tether(latents, start):
        return torch.maximum(latents, start - 30)

    labels = [2, 0, 1, 0, 2]
    slots = {"views": (noisy,), "tether": tether, "penalty": lambda latents, *_: latents[:, 1] / 50}
    found = search(labels, Run(early_stop=RULE), descent(**slots))
    for row, label in enumerate(labels):
        alone = search([label], Run(batch_size=1, early_stop=RULE), descent(**slots))
        assert torch.equal(found.latents[row], alone.latents[0])


def test_images_of_a_row_leave_together():
    def twice(latents, streams, step):
        return latents.repeat_interleave(2, dim=0)

    run = Run(batch_size=4, early_stop=RULE)
    found = search([0, 2, 1], run, descent(sample=twice, samples=2, students=3), torch.ones(3, 2))
    assert found.latents[0, 0] == 0.5**10
    assert run.taken.total() == 3 and run.work["target_forward"] == 2 * (10 + 20 + 14)
    assert run.work["student_backward"] == 3 * run.work["target_backward"]


def test_views_that_are_averaged_are_counted_for_the_steps_taken():
    run = Run(early_stop=RULE, averaging=Averaging("paa", 2))
    search([0], run, descent(identity=lambda images, labels: 0 * images.sum((1, 2, 3)) + labels))
    assert run.work["target_forward"] == 2 * 20


@pytest.mark.parametrize("optimiser", [RampedAdam(0.1, 40), WarmCosine(PlainSteps(), 40)])
def test_a_planned_step_size_is_followed_to_its_end(optimiser):
    run, plan = Run(early_stop=RULE), descent(steps=40, optimiser=optimiser, identity=distance)
    assert torch.equal(search([0, 1], run, plan).latents, search([0, 1], Run(), plan).latents)
    assert run.taken == {Taken("roll", 40, 40, SCHEDULED): 2}


def test_only_looks_wait_for_the_device():
    def waits(steps, rule):
        with Waits() as counted:
            search([2, 2], Run(early_stop=rule), descent(steps=steps))
        return counted.count

    never, rule = EarlyStop(window=0.99, least=10**6), EarlyStop(window=0.25, least=1)
    assert waits(12, None) == waits(12, never) == waits(60, never)
    assert waits(12, rule) == waits(60, rule) > waits(60, None)  # three looks each


MIXED = Run(precision="bf16")


@pytest.mark.parametrize(("step", "end"), [(1, 2), (10, 11), (14, 16), (17, 19), (18, 20), (19, 20), (20, 20)])
def test_a_tenth_of_the_steps_of_a_row_is_exact_whenever_it_leaves(step, end):
    # of 20 steps the last two are exact: who leaves after 19 has one of the two behind, who leaves after 18 none
    assert polished(step, 20, MIXED) == end and polished(step, 20, Run()) == step


def test_rows_that_leave_early_take_their_last_steps_in_single_precision():
    calls = []

    def watched(images, labels):
        calls.append((torch.is_autocast_enabled("cpu"), labels.tolist()))
        return loss(images, labels)

    run, still = Run(precision="bf16", early_stop=RULE), []
    run = replace(run, on_step=lambda _stage, done, _total: still.append(done))
    found = search([2, 0, 1], run, descent(identity=watched))
    del calls[:6]  # of the gate
    # label 0 leaves after 10 steps and takes one more, label 1 leaves after 14 and takes two, label 2 goes to the end
    everybody, first, second, last = [2, 0, 1], [0], [1], [2]
    assert calls == (
        10 * [(True, everybody)] + [(False, first)] + 4 * [(True, [2, 1])] + 2 * [(False, second)]
        + 4 * [(True, last)] + 2 * [(False, last)]
    )  # fmt: skip
    assert found.latents[:, 0].tolist() == pytest.approx([6 + 20, 4 * 0.5**11, 5 * 0.75**16])
    assert run.taken == {Taken("roll", 20, 11): 1, Taken("roll", 20, 16): 1, Taken("roll", 20, 20): 1}
    assert run.work["target_backward"] == 11 + 16 + 20
    assert still == sorted(still) and still.count(60) == 1


def test_who_is_refused_bfloat16_needs_no_polish():
    def opposite(images, labels):
        return (-1 if torch.is_autocast_enabled("cpu") else 1) * loss(images, labels)

    run, exact = Run(precision="bf16", early_stop=RULE), Run(early_stop=RULE)
    found = search([0, 1], run, descent(identity=opposite))
    assert run.decisions[0].used == "32" and run.taken == {Taken("roll", 20, 10): 1, Taken("roll", 20, 14): 1}
    assert torch.equal(found.latents, search([0, 1], exact).latents)


def test_a_loss_that_is_not_finite_is_noticed_although_others_left():
    def breaks(images, labels):
        return loss(images, labels) / (labels != 2)

    with pytest.raises(Diverged, match=r"classes \[2\]"):
        search([0, 2], Run(early_stop=RULE), descent(identity=breaks))


def test_long_searches_are_looked_at_twenty_times_and_short_ones_every_ten_steps():
    assert [window_of(EarlyStop(), steps) for steps in (25, 70, 200, 201, 1500, 20_000)] == [10, 10, 10, 11, 75, 1000]


def test_looks_happen_at_windows_only_and_the_end_ends_all():
    flat = torch.cat([torch.full((2, 1), 9.0), torch.ones(18, 1)])
    left = {step: leaving(flat, step, RULE) for step in range(1, 21)}
    assert [step for step, over in left.items() if over is not None] == [8, 10, 12, 14, 16, 18, 20]
    assert leaving(flat, 10, None) is None and leaving(flat, 20, None).tolist() == [True]


def test_a_row_that_rises_or_stands_still_from_the_start_has_not_converged():
    losses = torch.tensor([[3.0, 3.0, 3.0], [3.0, 4.0, 1.0], [3.0, 5.0, 1.0], [3.0, 6.0, 1.0]])
    assert converged(losses, 1, RULE).tolist() == [False, False, True]
    assert converged(losses[:2], 1, RULE).tolist() == [False] * 3  # too few windows
    assert converged(torch.tensor([[9.0], [1.0], [float("nan")], [1.0]]), 1, RULE).tolist() == [False]


def test_what_rises_again_is_idle_and_one_better_window_starts_anew():
    losses = torch.tensor([[9.0, 9.0], [1.0, 1.0], [2.0, 0.5], [3.0, 0.5]])
    assert converged(losses, 1, RULE).tolist() == [True, False]


@given(
    some.lists(some.lists(some.integers(-50, 50), min_size=3, max_size=3), min_size=4, max_size=8),
    some.sampled_from([1 / 8, 2, 64]),
    some.integers(-100, 100),
)
def test_neither_scale_nor_origin_of_a_loss_decides(losses, scale, shift):
    losses = torch.tensor(losses, dtype=torch.float32)[: len(losses) // 2 * 2]
    assert torch.equal(converged(losses, 2, RULE), converged(scale * losses + shift, 2, RULE))


@pytest.mark.parametrize("wrong", [{"window": 0.0}, {"window": 1.0}, {"tolerance": 0.0}, {"least": 0}, {"looks": 0}])
def test_refuses_rules_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match="expected window and tolerance"):
        replace(EarlyStop(), **wrong)
