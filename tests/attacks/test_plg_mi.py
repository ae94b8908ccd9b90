import functools

import pytest
import torch
from torch import nn

from mi_audit.attacks.plg_mi import PLGMI
from mi_audit.core.errors import ConfigError, Diverged
from mi_audit.core.run import Run
from mi_audit.core.target import Access, TorchTarget
from tests.toy import ToyPrior, target

STILL = {"area": (1.0, 1.0), "jitter": 0.0, "flip": 0.0, "degrees": 0.0}


class Watched(ToyPrior):
    """Keeps the latents and labels it decodes."""

    def __init__(self):
        self.decoded = []

    def decode_as(self, latents, labels):
        self.decoded.append((latents.detach().clone(), labels.clone()))
        return super().decode_as(latents, labels)


def attack(run=None, prior=None, toy=None, classes=(0, 1, 2, 3), **settings):
    toy = toy or target()
    return PLGMI(**PLGMI.smoke | settings).run(toy, prior or ToyPrior(), torch.tensor(classes), run or Run())


def test_returns_every_restart_ordered_by_class_and_as_sure_as_the_target():
    toy = target()
    found = attack(toy=toy, classes=(2, 0), restarts=3, steps=1)
    assert found.labels.tolist() == [2, 2, 2, 0, 0, 0]
    assert len(found.images.flatten(1).unique(dim=0)) == 6
    torch.testing.assert_close(found.confidence, toy.scores(found.images)[range(6), found.labels])


def test_the_generator_is_told_the_class():
    prior = Watched()
    attack(Run(batch_size=1000), prior=prior, classes=(3, 1), restarts=2, steps=2)
    assert [labels.tolist() for _, labels in prior.decoded] == [[3, 3, 1, 1]] * 3


def test_one_step_by_hand():
    prior = Watched()
    attack(prior=prior, classes=(2,), restarts=1, steps=1, lr=0.25, **STILL)
    (start, _), (end, _) = prior.decoded
    # Logits are 4 sigmoid(z). The margin falls when z rises for the class and falls for its strongest rival, and does
    # not depend on the others; the first step of Adam is lr against the sign of the slope.
    rival = start.scatter(1, torch.tensor([[2]]), -torch.inf).argmax().item()
    step = torch.zeros(1, 4)
    step[0, 2], step[0, rival] = 0.25, -0.25
    torch.testing.assert_close(end, start + step, atol=1e-5, rtol=0)


def test_latents_are_not_clipped():
    prior = Watched()
    attack(prior=prior, steps=20, lr=1.0)
    assert prior.decoded[-1][0].abs().max() > 3


def test_every_view_of_a_step_is_another_one():
    images = torch.rand(1, 3, 8, 8)
    streams = Run().streams(torch.tensor([0]), torch.tensor([0]))
    views = [PLGMI()._view(number)(images, streams, step) for number in (0, 1) for step in (0, 1)]
    assert len(torch.cat(views).flatten(1).unique(dim=0)) == 4
    still = PLGMI(**STILL)._view(0)(images, streams, 0)
    torch.testing.assert_close(still, images)


@functools.cache
def unmoved():
    return attack(**STILL).images


def test_views_that_change_nothing_leave_no_chance():
    torch.testing.assert_close(attack(**STILL).images, unmoved())


@pytest.mark.parametrize("part", ["area", "jitter", "degrees"])
def test_every_part_of_a_view_matters(part):
    settings = STILL | {part: {"area": (0.5, 0.6), "jitter": 0.4, "degrees": 20.0}[part]}
    assert not torch.allclose(attack(**settings).images, unmoved(), atol=1e-4)


def test_mirroring_confuses_classes_that_mirror_each_other():
    assert attack(flip=0.0).confidence.mean() > attack(flip=0.5).confidence.mean() + 0.05


def test_asks_once_per_view_and_once_at_the_end():
    toy, run = target(), Run()
    attack(run, toy=toy)
    assert toy.ledger.spent == {Access.WHITE_BOX: 2 * 8 * 40, Access.SCORE: 8}
    assert run.work == {
        "generator_forward": 8 * 41, "generator_backward": 8 * 40,
        "target_forward": 8 * 81, "target_backward": 8 * 80,
    }  # fmt: skip
    assert PLGMI(**PLGMI.smoke).sample_steps * 4 == 8 * 40


def test_a_broken_target_is_named():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    nn.init.constant_(net[1].weight, torch.nan)
    with pytest.raises(Diverged, match=r"stage 'descend' at step 0 of 40 for classes \[0, 1, 2, 3\]"):
        attack(toy=TorchTarget(net, 4, net[1]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "expected steps, restarts and views >= 1, got 0"),
        ({"views": 0}, "views >= 1"),
        ({"lr": 0.0}, "expected lr > 0"),
        ({"degrees": -1.0}, "degrees >= 0"),
        ({"area": (0.9, 0.5)}, "expected 0 < area <= 1"),
        ({"flip": 1.5}, "flip <= 1"),
    ],
)
def test_refuses_settings_out_of_range(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PLGMI(**wrong)


def test_ships_the_published_settings():
    published = PLGMI()
    assert (published.steps, published.restarts, published.lr, published.views) == (600, 5, 0.1, 2)
    assert (published.area, published.jitter, published.flip, published.degrees) == ((0.8, 1.0), 0.2, 0.5, 5.0)
