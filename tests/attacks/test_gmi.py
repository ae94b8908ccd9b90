import pytest
import torch
from torch import nn

from mi_audit.attacks.gmi import GMI
from mi_audit.core.errors import ConfigError, Diverged
from mi_audit.core.run import Run
from mi_audit.core.target import Access, TorchTarget
from tests.toy import ToyPrior, WatchedSpace, target, watched


def attack(run=None, prior=None, toy=None, classes=(0, 1, 2, 3), **settings):
    toy = toy or target()
    return GMI(**GMI.smoke | settings).run(toy, prior or ToyPrior(), torch.tensor(classes), run or Run())


def test_returns_every_restart_ordered_by_class_and_as_sure_as_the_target():
    toy = target()
    found = attack(toy=toy, classes=(2, 0), restarts=3, steps=1)
    assert found.labels.tolist() == [2, 2, 2, 0, 0, 0]
    assert len(found.images.flatten(1).unique(dim=0)) == 6
    torch.testing.assert_close(found.confidence, toy.scores(found.images)[range(6), found.labels])


def test_latents_start_normal_and_stay_in_the_box():
    start, *path = watched(attack, restarts=60, steps=3, clip=0.7)
    assert start.abs().max() > 1.5
    assert all(latents.abs().max() <= 0.7 for latents in path)
    assert (path[0].abs() == 0.7).float().mean() == pytest.approx(0.48, abs=0.1)  # P(|N(0, 1)| > 0.7)


def test_one_step_by_hand():
    class Flat(ToyPrior):
        def realism(self, images):
            return images.mean(dim=(1, 2, 3))

    prior = Flat()
    prior.z = WatchedSpace()
    weights = {"critic_weight": 8.0, "reference_batch": 4}
    attack(prior=prior, classes=(0,), restarts=1, steps=1, lr=0.5, momentum=0.5, clip=99.0, **weights)
    start, end = prior.z.decoded
    # logits are 4 s with s = sigmoid(z), so dCE/dz = 4 s (1 - s) (p - y); each quadrant is a quarter of the mean
    s = start.sigmoid()
    p = (4 * s).softmax(dim=1) - torch.tensor([1.0, 0, 0, 0])
    gradient = (100 * 4 * p - 8 * 0.25) * s * (1 - s) / 4
    torch.testing.assert_close(end, start - 1.5 * 0.5 * gradient)


def test_the_critic_pulls_towards_its_liking():
    def brightness(weight):
        found = attack(critic_weight=weight, identity_weight=0.0, steps=200, lr=20.0)
        return (found.images.mean(dim=(1, 2, 3)) - 0.25).abs().mean()

    assert brightness(1.0) < brightness(0.0)


def test_without_weight_the_critic_is_not_asked():
    run = Run()
    attack(run, critic_weight=0.0)
    assert run.work["critic_forward"] == 0


def test_asks_once_per_step_and_once_at_the_end():
    toy, run = target(), Run()
    attack(run, toy=toy)
    assert toy.ledger.spent == {Access.WHITE_BOX: 8 * 30, Access.SCORE: 8}
    assert run.work == {
        "generator_forward": 8 * 31, "generator_backward": 8 * 30, "critic_forward": 8 * 30,
        "critic_backward": 8 * 30, "target_forward": 8 * 31, "target_backward": 8 * 30,
    }  # fmt: skip
    assert GMI(**GMI.smoke).sample_steps * 4 == 8 * 30


def test_classes_may_be_split_between_runs():
    whole, first, second = attack(), attack(classes=(0, 1)), attack(classes=(2, 3))
    torch.testing.assert_close(whole.images, torch.cat([first.images, second.images]), atol=1e-6, rtol=0)


def test_a_broken_target_is_named():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    nn.init.constant_(net[1].weight, torch.nan)
    with pytest.raises(Diverged, match=r"stage 'descend' at step 0 of 30 for classes \[0, 1, 2, 3\]"):
        attack(toy=TorchTarget(net, 4, net[1]))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"restarts": 0}, {"lr": 0.0}, {"clip": -1.0}, {"critic_weight": -1.0}])
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"expected .*{next(iter(wrong))}|weights"):
        GMI(**wrong)


def test_ships_the_published_settings():
    published = GMI()
    assert (published.steps, published.restarts, published.reference_batch) == (1500, 5, 60)
    assert (published.lr, published.momentum, published.clip) == (0.02, 0.9, 1.0)
    assert (published.identity_weight, published.critic_weight) == (100, 1)
