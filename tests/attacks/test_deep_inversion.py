import functools

import pytest
import torch
from torch import nn

from mi_audit.attacks.deep_inversion import DeepInversion
from mi_audit.core.errors import ConfigError
from mi_audit.core.run import Averaging, Run
from mi_audit.core.target import Access, TorchTarget
from mi_audit.nn.pixel_space import SPREAD, statistics_distance, total_variation
from mi_audit.priors.pixels import Pixels
from tests.toy import dataset, prototypes, target


def pixels():
    recipe = Pixels()
    return recipe.restore(recipe.fit(dataset(), None, 0, "cpu", lambda *_: None), 8, 3, "cpu")


def normalised():
    """The toy classifier behind a batch normalisation that learned the statistics of the toy images."""
    norm, toy = nn.BatchNorm2d(3), target()
    images = dataset(per_class=20).images()
    norm.running_mean.copy_(images.mean(dim=(0, 2, 3)))
    norm.running_var.copy_(images.var(dim=(0, 2, 3)))
    head = toy._model[1]
    return TorchTarget(nn.Sequential(norm, nn.Flatten(), head), 4, head)


def attack(run=None, toy=None, classes=(0, 1, 2, 3), **settings):
    settings = DeepInversion.smoke | settings
    return DeepInversion(**settings).run(toy or target(), pixels(), torch.tensor(classes), run or Run())


def test_bare_pixels_convince_the_target():
    toy = normalised()
    found = attack(toy=toy)
    assert torch.equal(toy.labels(found.images), found.labels)
    torch.testing.assert_close(found.confidence, toy.scores(found.images)[range(8), found.labels])
    assert [curve.stage for curve in found.curves] == ["coarse", "fine"]


def test_the_statistics_pull_the_pictures_to_what_the_target_learned():
    def distance(weight):
        toy = normalised()
        images = attack(toy=toy, images=4, statistics_weight=weight, steps=60).images
        _, seen = toy.logits_and_normalisations(images)
        return float(statistics_distance(seen, 4, 1.0).mean())

    assert distance(10.0) < distance(0.0) / 2


def test_variation_and_norm_are_held_down():
    smooth, rough = (attack(variation_weight=w, statistics_weight=0.0).images for w in (0.5, 0.0))
    assert total_variation(smooth, 1).mean() < total_variation(rough, 1).mean() / 2
    flat, free = (attack(norm_weight=w).images for w in (10.0, 0.0))
    assert (flat - 0.5).norm() < (free - 0.5).norm() / 2


def test_the_loss_of_the_first_step_by_hand():
    toy = normalised()
    loss = attack(toy=toy, classes=(2,), coarse_steps=0, steps=1, warm_up=0, jitter=0.0, flip=0.0, first_layer=7.0)
    noise = Run().streams(torch.tensor([2, 2]), torch.tensor([0, 1])).normal("start", 192)
    images = pixels().z.decode(pixels().z.draw(noise))
    logits, (seen,) = toy.logits_and_normalisations(images)
    mean, variance = images.mean(dim=(0, 2, 3)), images.var(dim=(0, 2, 3), correction=0)
    gap = (mean - seen.mean).norm() + (variance - seen.variance).norm()
    expected = -logits.log_softmax(dim=1)[:, 2].mean() + 0.01 * 7 * gap
    assert loss.curves[0].losses[0] == pytest.approx(float(expected), rel=1e-5)


def test_a_step_is_a_quarter_of_a_unit_and_warms_up():
    noise = Run().streams(torch.tensor([0]), torch.tensor([0])).normal("start", 192)
    start = pixels().z.decode(pixels().z.draw(noise))
    settings = {"classes": (0,), "images": 1, "coarse_steps": 0, "steps": 3, "jitter": 0.0}
    cold = attack(steps_to_take := Run(), **settings | {"steps": 1, "warm_up": 0}).images
    assert steps_to_take.work["target_backward"] == 1
    moved = (cold - start).abs().flatten()
    inside = (cold > 0).flatten() & (cold < 1).flatten()
    # the first step of Adam is the step size, whatever the gradient
    torch.testing.assert_close(moved[inside], torch.full_like(moved[inside], 0.25 * SPREAD), atol=1e-4, rtol=0)

    # the first of four steps of warm-up is a quarter of that, and so is about what it takes off the loss
    losses = (attack(**settings | {"steps": 5, "warm_up": warm_up}).curves[0].losses for warm_up in (0, 4))
    cold_drop, warm_drop = (before - after for before, after, *_ in losses)
    assert 0 < warm_drop < 0.5 * cold_drop


def test_pictures_of_one_class_share_statistics_and_of_two_do_not():
    toy = normalised()
    both, alone = attack(toy=toy, classes=(0, 1)), attack(toy=toy, classes=(1,))
    torch.testing.assert_close(both.images[2:], alone.images, atol=1e-5, rtol=0)
    more = attack(toy=toy, classes=(1,), images=3)
    assert not torch.allclose(more.images[:2], alone.images, atol=1e-3)


@functools.cache
def viewed(batch_size):
    run = Run(batch_size=batch_size, averaging=Averaging("taa", 3))
    return attack(run, toy=normalised(), coarse_steps=10, steps=10).images


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_groups_are_never_cut_even_when_views_are_averaged(batch_size):
    torch.testing.assert_close(viewed(batch_size), viewed(512), atol=1e-3, rtol=0)


def test_asks_for_every_picture_once_per_step_and_once_at_the_end():
    toy, run = normalised(), Run()
    attack(run, toy=toy)
    assert toy.ledger.spent == {Access.WHITE_BOX: 8 * 40, Access.SCORE: 8}
    assert run.work["target_backward"] == DeepInversion(**DeepInversion.smoke).sample_steps * 4
    assert run.work["critic_forward"] == 0


def test_finds_prototypes_up_to_shifts_without_normalisation():
    found = attack(flip=0.0, jitter=0.0, images=1)
    nearest = torch.cdist(found.images.flatten(1), prototypes().flatten(1)).argmin(1)
    assert torch.equal(nearest, found.labels)


@pytest.mark.parametrize(
    "wrong", [{"images": 0}, {"steps": 0}, {"coarse_steps": -1}, {"warm_up": 1000}, {"lr": 0.0}, {"jitter": 0.6}]
)
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"expected .*{next(iter(wrong))}"):
        DeepInversion(**wrong)


def test_ships_the_published_settings():
    published = DeepInversion()
    assert (published.coarse_steps, published.steps, published.warm_up) == (2000, 1000, 100)
    assert (published.lr, published.betas) == (0.25, (0.5, 0.9))
    assert (published.statistics_weight, published.first_layer) == (0.01, 10)
    assert (published.variation_weight, published.norm_weight) == (1e-4, 1e-5)


def test_the_quick_settings_mirror_nothing():
    assert DeepInversion(**DeepInversion.quick).flip == 0
