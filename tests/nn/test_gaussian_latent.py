import math

import pytest
import torch
from scipy import stats

from mi_audit.nn.gaussian_latent import GaussianLatent
from tests.toy import streams


def test_a_start_has_the_mean_and_the_deviation_it_was_given():
    latent, centre = GaussianLatent(2), torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    start = latent.start(centre, math.exp(0.5))
    assert torch.equal(latent.mean(start), centre)
    torch.testing.assert_close(latent.deviation(start), torch.full((2, 2), math.exp(0.5)))
    torch.testing.assert_close(start[:, 2:], torch.ones(2, 2))  # the logarithm of the variance e


def test_a_draw_by_hand():
    latent = GaussianLatent(2, name="z")
    rows = torch.tensor([[1.0, -1.0, math.log(4.0), math.log(0.25)]])  # deviations 2 and 1/2
    noise = streams(1).normal("z", 2, step=7)
    torch.testing.assert_close(
        latent.sample(rows, streams(1), 7), torch.tensor([[1.0, -1.0]]) + noise * torch.tensor([2.0, 0.5])
    )


def test_gradients_are_those_of_the_reparametrisation():
    latent = GaussianLatent(1)
    rows = torch.tensor([[0.5, math.log(9.0)]], requires_grad=True)
    noise = streams(1).normal("gaussian", 1, step=0)
    (gradient,) = torch.autograd.grad(latent.sample(rows, streams(1), 0).sum(), rows)
    torch.testing.assert_close(gradient, torch.cat([torch.ones(1, 1), 3 * noise / 2], dim=1))  # d e^(r/2) e / dr


def test_draws_follow_the_gaussian_and_differ_by_step():
    latent = GaussianLatent(1)
    rows = latent.start(torch.full((5000, 1), 2.0), 0.5)
    first, second = (latent.sample(rows, streams(5000), step).flatten() for step in (0, 1))
    assert stats.kstest(first.numpy(), stats.norm(2.0, 0.5).cdf).pvalue > 1e-4
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.05


def test_draws_stay_in_the_box():
    latent = GaussianLatent(3, bound=1.0)
    drawn = latent.sample(latent.start(torch.zeros(500, 3), 2.0), streams(500), 0)
    assert drawn.abs().max() == 1.0
    assert (drawn.abs() == 1.0).float().mean() == pytest.approx(0.617, abs=0.04)  # P(|N(0, 2)| > 1)
