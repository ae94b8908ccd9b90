import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from mi_audit.core.errors import Diverged
from mi_audit.core.run import Averaging, Run
from mi_audit.nn.pseudo_private import PseudoPrivateTuning, Typical, likeness, typical
from tests.toy import ToyPrior, TunableToyPrior

TUNING = PseudoPrivateTuning(
    project_steps=40, project_lr=0.3, noise=0.05, critic_weight=0.0, tune_steps=20, tune_lr=0.02
)
LATENTS = torch.tensor([[2.0, -2.0, -2.0, -2.0], [1.0, -1.0, -2.0, -2.5], [1.5, 0.0, -1.0, -2.0]])


def images(latents=LATENTS):
    return TunableToyPrior().z.decode(latents)


def project(run=None, prior=None, shown=None, middle=None, **settings):
    shown = images() if shown is None else shown
    run = run or Run()
    rows = torch.arange(len(shown))
    streams = run.streams(torch.zeros_like(rows), rows)
    middle = middle or Typical(torch.zeros(4), torch.tensor(2.0))
    return replace(TUNING, **settings).project(prior or TunableToyPrior(), shown, middle, streams, run)


def test_likeness_by_hand():
    # 8 pixels across: the image, and its means over 2 x 2; at 4 pixels it ends.
    # A chequerboard of 0 and 1 against 0: root mean square sqrt(1/2); its means are 1/2.
    # Against 1/2: 1/2, and 0.
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float()[None, None]
    assert likeness(board, torch.zeros_like(board)).item() == pytest.approx((math.sqrt(0.5) + 0.5) / 2, abs=1e-5)
    assert likeness(board, torch.full_like(board, 0.5)).item() == pytest.approx(0.5 / 2, abs=1e-4)
    assert likeness(board, board).item() == pytest.approx(0, abs=1e-4)
    # One scale at 4 pixels, three at 16: a difference of 0.3 everywhere is 0.3 on each.
    for side in (4, 16):
        flat = torch.full((1, 1, side, side), 0.3)
        assert likeness(flat, torch.zeros_like(flat)).item() == pytest.approx(0.3, abs=1e-5)
    assert likeness(board[..., :4, :4], torch.full((1, 1, 4, 4), 0.5)).item() == pytest.approx(0.5, abs=1e-5)


def test_likeness_is_per_image_in_single_precision_and_has_a_gradient_at_zero():
    pair = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    torch.testing.assert_close(likeness(pair, pair.flip(0)), torch.ones(2))
    assert likeness(pair.bfloat16(), pair.bfloat16()).dtype == torch.float32
    same = pair.clone().requires_grad_()
    (slope,) = torch.autograd.grad(likeness(same, pair).sum(), same)
    assert slope.isfinite().all()


def test_typical_is_the_average_and_the_root_mean_square_distance():
    class Corners(ToyPrior):
        class Space(type(ToyPrior.z)):
            width = 2

            def draw(self, noise):
                # half of them at (3, 1) and half at (-1, 1): mean (1, 1), distance 2 of every one
                return torch.tensor([[3.0, 1.0], [-1.0, 1.0]]).repeat(len(noise) // 2, 1)

        z = w = Space()

    found = typical(Corners(), 10, torch.device("cpu"), Run())
    assert found.mean.tolist() == [1, 1] and found.spread.item() == 2
    # 600 normal latents of four numbers (none is beyond the toy's box of 3 often): about 0, and sqrt(4).
    found = typical(ToyPrior(), 600, torch.device("cpu"), Run())
    assert found.mean.abs().max() < 0.15 and found.spread.item() == pytest.approx(2, abs=0.1)


def test_projection_finds_latents_that_make_the_images():
    found = project(project_steps=150, project_lr=0.2)
    torch.testing.assert_close(TunableToyPrior().z.decode(found.latents), images(), atol=0.02, rtol=0)
    assert found.curve.stage == "project" and found.curve.losses[-1] < 0.1 * found.curve.losses[0]


def test_projection_starts_at_the_average_latent():
    # One step of a search of one step: Adam moves by its step size, which the ramp holds at 0 in the first.
    start = torch.tensor([0.5, -0.5, 0.0, 1.0])
    found = project(middle=Typical(start, torch.tensor(2.0)), project_steps=1)
    torch.testing.assert_close(found.latents, start.expand(3, -1))


def test_the_disturbance_falls_to_nothing_within_three_quarters():
    # noise * (1 - t / 0.75)^2: of 100 steps, 0.05 at 0, a quarter of it at 37.5, nothing from 75 on.
    tuning = replace(TUNING, project_steps=100)
    assert tuning.disturbance(0) == 0.05
    assert tuning.disturbance(25) == pytest.approx(0.05 * (2 / 3) ** 2)
    assert tuning.disturbance(75) == 0 == tuning.disturbance(90)


class Watched(TunableToyPrior):
    def __init__(self):
        super().__init__()
        self.decoded, plain = [], self.z.decode
        self.z.decode = lambda latents: (self.decoded.append(latents.detach().clone()), plain(latents))[1]


def test_the_latents_are_disturbed_by_a_share_of_their_spread():
    def gaps(**settings):
        prior = Watched()
        project(prior=prior, shown=images(LATENTS[:1]).repeat(500, 1, 1, 1), run=Run(batch_size=500), **settings)
        return prior.decoded

    first, *_, last = gaps(noise=0.1, project_steps=4)
    assert first.std().item() == pytest.approx(0.1 * 2, rel=0.05)  # at the first step all latents are the average
    assert last.std(dim=0).max() < 0.1
    assert gaps(noise=0.0, project_steps=1)[0].abs().max() == 0


def test_the_critic_holds_latents_back_by_its_non_saturating_loss():
    class Prefers(TunableToyPrior):
        def realism(self, images):
            return -20 * images.mean(dim=(1, 2, 3))

    free, held = (project(prior=Prefers(), critic_weight=weight).latents for weight in (0.0, 1.0))
    decode = TunableToyPrior().z.decode
    assert decode(held).mean() < decode(free).mean() - 0.05
    run = Run()
    project(run, prior=Prefers(), critic_weight=1.0)
    assert run.work["critic_forward"] == run.work["critic_backward"] == 3 * 40


def test_the_weight_of_the_critic_is_that_of_its_loss():
    # At the wanted image the likeness is flat, so what pulls at it is w * softplus(-D): -w * sigmoid(-D) * D'.
    # The average latent makes 0.45 at each of the 192 numbers; D = 1 - their mean = 0.55, D' = -1 / 192.
    pulls = []

    class Probed(TunableToyPrior):
        def realism(self, images):
            images.register_hook(pulls.append)
            return 1 - images.mean(dim=(1, 2, 3))

    project(prior=Probed(), shown=images(torch.zeros(1, 4)), critic_weight=0.1, noise=0.0, project_steps=1)
    expected = 0.1 / (1 + math.exp(0.55)) / 192
    torch.testing.assert_close(pulls[0], torch.full((1, 3, 8, 8), expected))


def test_projection_asks_no_target_and_averages_no_views():
    run = Run(averaging=Averaging("taa", 5))
    project(run)
    assert run.work == Counter(generator_forward=3 * 40, generator_backward=3 * 40)
    torch.testing.assert_close(project(run).latents, project(Run()).latents)


def tune(run=None, latents=None, shown=None, **settings):
    prior = TunableToyPrior()
    latents = LATENTS if latents is None else latents
    shown = images() / 0.9 * 0.6 if shown is None else shown  # what weights of 0.6 would make
    curve = replace(TUNING, **settings).tune(prior, latents, shown, run or Run())
    return prior, curve


def test_tuning_trains_the_generator_until_the_latents_make_the_images():
    prior, curve = tune(tune_steps=60)
    torch.testing.assert_close(prior.z.decode(LATENTS), images() / 0.9 * 0.6, atol=0.02, rtol=0)
    assert curve.stage == "tune" and curve.losses[-1] < 0.1 * curve.losses[0]
    assert prior.z.weights.tolist() == pytest.approx([0.6] * 4, abs=0.1)


def test_the_first_step_of_tuning_by_hand():
    # One latent, one bright quadrant, wanted black. Adam's first step is its step size against the sign of the slope;
    # every quadrant is brighter than wanted, so every weight falls by tune_lr.
    prior, curve = tune(latents=torch.zeros(1, 4), shown=torch.zeros(1, 3, 8, 8), tune_steps=1, tune_lr=0.01)
    torch.testing.assert_close(prior.z.weights.data, torch.full((4,), 0.89))
    # sigmoid(0) * 0.9 = 0.45 at every pixel on both scales
    assert curve.losses == pytest.approx((0.45,), abs=1e-5)


def test_tuning_takes_the_mean_over_the_images_whatever_the_batch():
    weights = [tune(Run(batch_size=size))[0].z.weights for size in (1, 2, 64)]
    torch.testing.assert_close(weights[0], weights[2], atol=1e-6, rtol=0)
    torch.testing.assert_close(weights[1], weights[2], atol=1e-6, rtol=0)
    losses = [tune(Run(batch_size=size))[1].losses for size in (1, 64)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0][0] == pytest.approx(likeness(images(), images() / 0.9 * 0.6).mean().item(), abs=1e-6)


def test_tuning_leaves_frozen_weights_without_gradients():
    prior, _ = tune()
    assert not prior.z.weights.requires_grad and prior.z.weights.grad is None


def test_tuning_counts_and_reports_its_work():
    told, run = [], Run(on_step=lambda *what: told.append(what))
    tune(run)
    assert run.work == Counter(generator_forward=3 * 20, generator_backward=3 * 20)
    assert told[0] == ("tune", 3, 60) and told[-1] == ("tune", 60, 60)


def test_a_step_that_leads_to_nan_is_named():
    with pytest.raises(Diverged, match=r"step 0 of 20"):
        tune(shown=torch.full((3, 3, 8, 8), torch.nan))


def test_a_copy_has_weights_of_its_own():
    prior = TunableToyPrior()
    own = prior.copied()
    TUNING.tune(own, LATENTS, torch.zeros(3, 3, 8, 8), Run())
    assert prior.z.weights.tolist() == pytest.approx([0.9] * 4)
    assert (own.z.weights < 0.89).all()
    assert torch.equal(own.z.decode(LATENTS), own.search.decode(LATENTS))
