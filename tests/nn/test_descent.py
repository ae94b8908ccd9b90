from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mi_audit.core.errors import Diverged, OutOfMemory
from mi_audit.core.run import Averaging, Run
from mi_audit.nn.descent import Descent
from mi_audit.nn.optimisers import Adam, Nesterov, Optimiser
from mi_audit.nn.views import Jitter, RandomCrop, Rotation


class PlainSteps(Optimiser):
    """Gradient descent with a step size of one."""

    def start(self, _latents):
        return ()

    def update(self, latents, gradient, state, _step):
        return latents - gradient, state


def decode(latents, labels):
    return latents[:, :, None, None]  # one pixel per coordinate


def distance(images, labels):
    """Squared distance of the first channel from the label; its gradient is twice the difference."""
    return (images[:, 0, 0, 0] - labels).square()


def descent(**slots):
    return Descent(
        **{"stage": "climb", "steps": 3, "decode": decode, "identity": distance, "optimiser": Adam(0.1)} | slots
    )


def search(plan, run=None, rows=5, start=None):
    run = run or Run()
    labels, restarts = torch.arange(rows), torch.zeros(rows, dtype=torch.long)
    streams = run.streams(labels, restarts)
    return plan.search(streams.normal("start", 2) if start is None else start, labels, streams, run)


def test_gradient_steps_by_hand():
    plan = descent(optimiser=PlainSteps(), identity_weight=3.0, reference_batch=12, steps=2)
    found = search(plan, rows=2, start=torch.tensor([[4.0, 7.0], [5.0, 7.0]]))
    # each step subtracts 3 / 12 * 2 * (z - label): z - label halves, from 4 and 4; the other coordinate stays
    assert found.latents.tolist() == [[1, 7], [2, 7]]
    assert found.curve.losses == (16, 4)  # unweighted, before each step
    assert found.curve.steps == (0, 1)


def test_a_tether_knows_where_every_row_started():
    def tether(latents, start):
        return torch.maximum(latents, start - 1)

    plan = descent(optimiser=PlainSteps(), identity_weight=3.0, reference_batch=12, steps=2, tether=tether)
    start = torch.tensor([[4.0, 7.0], [5.0, 7.0], [2.5, 0.0]])
    for size in (1, 64):
        found = search(plan, Run(batch_size=size), rows=3, start=start)
        assert found.latents.tolist() == [[3, 7], [4, 7], [2.125, 0]]


def test_realism_is_maximised():
    plan = descent(optimiser=PlainSteps(), steps=1, reference_batch=2, realism=lambda images: 6 * images[:, 1, 0, 0])
    found = search(plan, rows=1, start=torch.tensor([[0.0, 0.0]]))
    assert found.latents.tolist() == [[0, 3]]


def test_identity_is_the_mean_over_views():
    plan = descent(optimiser=PlainSteps(), steps=1, views=(lambda x, *_: x, lambda x, *_: 3 * x))
    found = search(plan, rows=2, start=torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    assert found.curve.losses == pytest.approx([((1 + 9) / 2 + (1 + 25) / 2) / 2])
    assert found.latents[:, 0].tolist() == pytest.approx([1 - (2 + 18) / 2, 2 - (2 + 30) / 2])


def test_views_and_samples_see_the_stream_of_their_row_and_the_step():
    seen = []

    def watch(images, streams, step):
        seen.append((step, streams.keys.tolist()))
        return images

    run = Run(batch_size=2)
    search(descent(views=(watch,), steps=2), run, rows=3)
    keys = run.streams(torch.arange(3), torch.zeros(3, dtype=torch.long)).keys.tolist()
    assert seen == [(0, keys[:2]), (1, keys[:2]), (0, keys[2:]), (1, keys[2:])]


def test_a_sample_is_decoded_in_place_of_the_latent():
    plan = descent(optimiser=PlainSteps(), steps=1, sample=lambda latents, _, step: 2 * latents + step)
    found = search(plan, rows=1, start=torch.tensor([[1.0, 0.0]]))
    assert found.latents[0, 0] == 1 - 2 * 2 * 2  # d (2 z)^2 / dz at 1


def test_the_constraint_holds_after_every_step():
    calls = []

    def box(latents):
        calls.append(latents)
        return latents.clamp(-0.5, 0.5)

    found = search(descent(constraint=box, steps=4))
    assert found.latents.abs().max() <= 0.5 and len(calls) == 4


@pytest.mark.parametrize("optimiser", [Adam(0.1), Nesterov(0.1)])
def test_neither_batch_size_nor_neighbours_change_a_path(optimiser):
    plan = descent(optimiser=optimiser, steps=20, views=(lambda x, s, t: x + s.normal("noise", 2, 1, 1, step=t),))
    whole, cut = search(plan, Run(batch_size=64)), search(plan, Run(batch_size=2))
    alone = search(plan, rows=2)
    assert torch.equal(whole.latents, cut.latents) and torch.equal(whole.latents[:2], alone.latents)
    assert whole.curve.losses == pytest.approx(cut.curve.losses)


def test_the_loss_falls_step_by_step():
    losses = search(descent(steps=60)).curve.losses
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_long_curves_are_thinned_to_a_hundred_points_with_both_ends():
    curve = search(descent(steps=1001)).curve
    assert len(curve.steps) == len(curve.losses) == 100
    assert (curve.steps[0], curve.steps[-1]) == (0, 1000)
    assert curve.stage == "climb"


def test_a_row_of_several_images_pays_their_mean_and_gives_each_a_stream_of_its_own():
    seen = []

    def watch(images, streams, step):
        seen.append((step, streams.keys.tolist()))
        return images

    def shift(latents, streams, step):
        return torch.stack([latents, latents + 1], dim=1).flatten(0, 1)

    run = Run(batch_size=4)  # two rows of two images
    plan = descent(optimiser=PlainSteps(), sample=shift, samples=2, steps=1, views=(watch,))
    found = search(plan, run, rows=3, start=torch.tensor([[4.0, 7.0], [5.0, 7.0], [6.0, 7.0]]))
    # z - label is 4, and 5 for the second image: the loss is (16 + 25) / 2, its slope 4 + 5
    assert found.curve.losses == (20.5,)
    assert found.latents[:, 0].tolist() == [4 - 9, 5 - 9, 6 - 9]
    keys = run.streams(torch.arange(3), torch.zeros(3, dtype=torch.long)).branches(2).keys.tolist()
    assert seen == [(0, keys[:4]), (0, keys[4:])] and len(set(keys)) == 6
    assert run.work["generator_forward"] == run.work["target_backward"] == 6


def test_a_penalty_is_paid_by_the_row():
    plan = descent(optimiser=PlainSteps(), steps=1, penalty=lambda latents, *_: 5 * latents[:, 1])
    found = search(plan, rows=1, start=torch.tensor([[0.0, 0.0]]))
    assert found.latents.tolist() == [[0, -5]] and found.curve.losses == (0,)


def test_counts_images_through_each_network():
    run = Run(batch_size=2)
    search(descent(steps=4, views=(lambda x, *_: x,) * 2, realism=lambda x: x[:, 0, 0, 0]), run)
    assert run.work == {
        "generator_forward": 20, "generator_backward": 20, "critic_forward": 20, "critic_backward": 20,
        "target_forward": 40, "target_backward": 40,
    }  # fmt: skip


def test_without_a_critic_none_is_counted():
    run = Run()
    search(descent(), run)
    assert set(run.work) == {f"{net}_{way}" for net in ("generator", "target") for way in ("forward", "backward")}


def test_progress_moves_inside_a_chunk_and_counts_all_rows():
    seen = []
    search(descent(steps=12), Run(batch_size=3, on_step=lambda *event: seen.append(event)))
    done = [done for _, done, _ in seen]
    assert done == [15, 30, 36, 36 + 10, 36 + 20, 60]
    assert {(stage, total) for stage, _, total in seen} == {("climb", 60)}


@pytest.mark.parametrize(("bad_step", "steps"), [(0, 9), (4, 9), (8, 9)])
def test_a_loss_that_is_not_finite_names_stage_step_and_classes(bad_step, steps):
    def breaks(images, streams, step):
        return images / 0 if step == bad_step else images

    plan = descent(views=(breaks,), steps=steps)
    with pytest.raises(Diverged, match=rf"stage 'climb' at step {bad_step} of {steps} for classes \[0, 1, 2\]"):
        search(plan, rows=3)


def test_weights_that_are_broken_from_the_start_cost_one_step():
    calls = []

    def broken(images, labels):
        calls.append(labels)
        return distance(images, labels) * torch.nan

    with pytest.raises(Diverged):
        search(descent(identity=broken, steps=50))
    assert len(calls) == 1


def test_only_the_classes_that_diverged_are_named():
    def one_row(images, labels):
        return torch.where(labels == 3, torch.nan, distance(images, labels))

    with pytest.raises(Diverged, match=r"step 0 of 3 for classes \[3\]"):
        search(descent(identity=one_row))


def test_a_latent_that_breaks_in_the_last_step_is_noticed():
    plan = descent(steps=1, realism=lambda images: (images[:, 1, 0, 0] * 0).sqrt())  # finite, with an infinite slope
    with pytest.raises(Diverged, match="at step 1 of 1"):
        search(plan)


def test_nothing_but_latents_gets_a_gradient_even_where_gradients_are_off():
    weight = torch.nn.Parameter(torch.ones(1))
    plan = descent(decode=lambda latents, labels: decode(latents * weight, labels))
    with torch.no_grad():
        found = search(plan)
    assert weight.grad is None and not found.latents.requires_grad


def test_running_out_of_memory_keeps_finished_chunks_and_changes_nothing():
    calls = []

    def tight(images, labels):
        calls.append(len(labels))
        if len(labels) > 2 and 4 in labels:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return distance(images, labels)

    run, plan = Run(batch_size=3), descent(steps=2)
    found = search(replace(plan, identity=tight), run, rows=6)
    assert calls == [3, 3, 3, 1, 1, 1, 1, 1, 1]
    assert torch.equal(found.latents, search(plan, rows=6).latents)
    assert run.work["target_forward"] == 12


@pytest.mark.parametrize("optimiser", [Adam(0.1), Nesterov(0.1)])
def test_rows_go_on_in_halves_from_where_memory_ran_out(optimiser):
    taken = []

    def crowded(images, labels):
        """From the third step on there is room for two rows."""
        if len(taken) >= 2 and len(labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        taken.append(len(labels))
        return distance(images, labels)

    run = Run(batch_size=8)
    slots = {"steps": 5, "optimiser": optimiser, "constraint": lambda latents: latents.clamp(-2, 2)}
    calm, pressed = search(descent(**slots), rows=7), search(descent(**slots, identity=crowded), run, rows=7)
    assert torch.equal(calm.latents, pressed.latents) and calm.curve == pressed.curve
    assert taken == [7, 7] + 3 * [1] + 3 * [2] + 3 * [2] + 3 * [2]  # 7 = 3 + 4 = (1 + 2) + (2 + 2), no step twice
    assert run.work["target_forward"] == 7 * 5


def test_one_row_without_memory_is_an_error():
    taken = []

    def full(images, labels):
        taken.append(len(labels))
        if len(taken) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return distance(images, labels)

    with pytest.raises(OutOfMemory, match="expected one image to fit the device"):
        search(descent(identity=full), Run(batch_size=2), rows=2)


class Waits(TorchDispatchMode):
    """Counts how often the processor waits for a number from the device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **kwargs or {})


def test_no_step_waits_for_the_device():
    def waits(steps):
        plan = descent(
            steps=steps,
            views=(RandomCrop((0.8, 1.0), (0.9, 1.1), flip=0.5), Rotation(), Jitter()),
            decode=lambda latents, _: latents[:, :, None, None].expand(-1, -1, 4, 4),
            constraint=lambda latents: latents.clamp(-2, 2),
            penalty=lambda latents, *_: latents.square().sum(dim=1),
        )
        with Waits() as counted:
            search(plan, Run(averaging=Averaging("taa", 3)))
        return counted.count

    assert waits(12) == waits(3) > 0  # those of the check at the first step, and of what is read at the end
