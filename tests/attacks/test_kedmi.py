import math

import pytest
import torch
from torch import nn

from mi_audit.attacks.kedmi import KEDMI
from mi_audit.core.errors import ConfigError, Diverged
from mi_audit.core.run import Run
from mi_audit.core.target import Access, TorchTarget
from mi_audit.nn.gaussian_latent import GaussianLatent
from tests.toy import ToyPrior, WatchedSpace, target, watched


def attack(run=None, prior=None, toy=None, classes=(0, 1, 2, 3), **settings):
    toy = toy or target()
    return KEDMI(**KEDMI.smoke | settings).run(toy, prior or ToyPrior(), torch.tensor(classes), run or Run())


def test_returns_different_draws_ordered_by_class_and_as_sure_as_the_target():
    toy = target()
    found = attack(toy=toy, classes=(2, 0), samples=3, steps=1, clip="none")
    assert found.labels.tolist() == [2, 2, 2, 0, 0, 0]
    assert len(found.images.flatten(1).unique(dim=0)) == 6
    torch.testing.assert_close(found.confidence, toy.scores(found.images)[range(6), found.labels])


def test_the_first_draws_have_the_published_spread():
    first, *_ = watched(attack, classes=(0, 1, 2, 3), samples=1, steps=1, clip="none")
    noise = torch.cat(
        [Run().streams(torch.tensor([c]), torch.tensor([0])).normal("gaussian", 4, step=0) for c in range(4)]
    )
    torch.testing.assert_close(first, math.exp(0.5) * noise)


def test_every_step_decodes_a_fresh_draw():
    *path, _ = watched(attack, steps=4, lr=1e-9, clip="none")
    assert len(torch.stack(path)[:, 0].unique(dim=0)) == 4


def test_draws_are_clipped_before_they_are_decoded():
    assert all(latents.abs().max() <= 1 for latents in watched(attack, steps=3))
    assert max(latents.abs().max() for latents in watched(attack, steps=3, clip="none")) > 1.5


def test_one_step_by_hand():
    class Flat(ToyPrior):
        def realism(self, images):
            return images.mean(dim=(1, 2, 3))

    prior, run, lr = Flat(), Run(seed=5), 0.25
    prior.z = WatchedSpace()
    settings = {"steps": 1, "samples": 1, "lr": lr, "clip": "none", "critic_weight": 900.0}
    attack(run, prior=prior, classes=(0,), **settings)
    start, end = prior.z.decoded
    # logits are 4 s with s = sigmoid(z), so dCE/dz = 4 s (1 - s) (p - y); each quadrant is a quarter of the mean
    s = start.sigmoid()
    p = (4 * s).softmax(dim=1) - torch.tensor([1.0, 0, 0, 0])
    slope = (100 * 4 * p - 900 * 0.25) * s * (1 - s)
    # z = sigma e: the first step of Adam is lr against the sign of the slope, e sigma / 2 times that for rho
    mean, rho = -lr * slope.sign(), 1 - lr * (slope * start).sign()
    keys = torch.zeros(1, dtype=torch.long)
    noise = run.streams(keys, keys).normal("gaussian", 4, step=1)
    torch.testing.assert_close(end, mean + (rho / 2).exp() * noise, atol=1e-5, rtol=0)


def test_the_gaussians_narrow():
    plan, latent = KEDMI(steps=200, lr=0.05), GaussianLatent(4, bound=1.0)
    classes = torch.arange(4)
    run = Run()
    start = latent.start(torch.zeros(4, 4), math.exp(0.5))
    found = plan._descent(target(), ToyPrior(), latent).search(start, classes, run.streams(classes, classes), run)
    narrow = latent.deviation(found.latents) / math.exp(0.5)
    assert narrow.gather(1, classes[:, None]).mean() < 0.8  # in the direction of the class


def test_the_target_is_surer_of_the_result_than_of_the_start():
    few, many = attack(steps=1), attack(steps=60)
    assert many.confidence.mean() > few.confidence.mean() + 0.1


def test_asks_once_per_step_and_class_and_once_per_image():
    toy, run = target(), Run()
    attack(run, toy=toy)
    assert toy.ledger.spent == {Access.WHITE_BOX: 4 * 60, Access.SCORE: 8}
    assert run.work == {
        "generator_forward": 4 * 60 + 8, "generator_backward": 4 * 60, "critic_forward": 4 * 60,
        "critic_backward": 4 * 60, "target_forward": 4 * 60 + 8, "target_backward": 4 * 60,
    }  # fmt: skip
    assert KEDMI(**KEDMI.smoke).sample_steps * 4 == 4 * 60


def test_without_weight_the_critic_is_not_asked():
    run = Run()
    attack(run, critic_weight=0.0)
    assert run.work["critic_forward"] == 0


def test_a_broken_target_is_named():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    nn.init.constant_(net[1].weight, torch.nan)
    with pytest.raises(Diverged, match=r"stage 'descend' at step 0 of 60 for classes \[0, 1, 2, 3\]"):
        attack(toy=TorchTarget(net, 4, net[1]))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"samples": 0}, {"lr": 0.0}, {"critic_weight": -1.0}])
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"expected .*{next(iter(wrong))}|weights"):
        KEDMI(**wrong)


def test_ships_the_published_settings():
    published = KEDMI()
    assert (published.steps, published.samples, published.lr, published.log_variance) == (2400, 5, 0.02, 1.0)
    assert (published.clip, published.identity_weight, published.critic_weight) == ("pre", 100, 1)
