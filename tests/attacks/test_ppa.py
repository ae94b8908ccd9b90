from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_audit.attacks.ppa import PPA
from mi_audit.core.errors import ConfigError, Diverged
from mi_audit.core.prior import Prior
from mi_audit.core.run import Run
from mi_audit.core.target import Access, TorchTarget
from mi_audit.nn.pool import Pool
from mi_audit.nn.views import RandomCrop
from tests.toy import ToyPrior, ToySpace, target

SMOKE = PPA(**PPA.smoke)


def attack(run=None, prior=None, toy=None, classes=(0, 1, 2, 3), **settings):
    toy = toy or target()
    return replace(SMOKE, **settings).run(toy, prior or ToyPrior(), torch.tensor(classes), run or Run())


def candidates(classes=(0, 1, 2, 3), run=None, **settings):
    plan = replace(SMOKE, **settings)
    pool = Pool(size=plan.pool, truncation=plan.truncation, crop=plan.crop)
    drawn = pool.draw(target(), ToyPrior(), torch.tensor(classes), plan.restarts, run or Run())
    return drawn.best.view(len(classes), plan.restarts, 4)


def test_candidates_differ_within_a_class_and_are_the_surest_of_the_pool():
    toy, space = target(), ToySpace()
    chosen, everything = candidates(), candidates(classes=(2,), restarts=32)[0]
    assert all(len(latents.unique(dim=0)) == SMOKE.restarts for latents in chosen)
    images = space.decode(everything)
    scores = (toy.scores(images) + toy.scores(images.flip(3)))[:, 2]
    assert (scores.diff() <= 0).all()
    torch.testing.assert_close(chosen[2], everything[:4])


def test_the_pool_is_scored_on_an_image_and_its_mirror_image():
    # North-west and north-east mirror each other, so both classes rank the pool alike.
    west, east = candidates(classes=(0, 1))
    assert torch.equal(west, east)


def test_the_pool_depends_on_the_seed_and_not_on_the_classes():
    torch.testing.assert_close(candidates()[1:3], candidates(classes=(1, 2)))
    assert not torch.equal(candidates()[0], candidates(run=Run(seed=1))[0])


def test_classes_may_be_split_between_runs():
    whole, first, second = attack(), attack(classes=(0, 1)), attack(classes=(2, 3))
    torch.testing.assert_close(whole.images, torch.cat([first.images, second.images]), atol=1e-5, rtol=0)


def test_keeps_the_most_robust_surest_first():
    few, all_of_them = attack(keep=2), attack(keep=4)
    assert (all_of_them.confidence.view(4, 4).diff(dim=1) <= 0).all()
    torch.testing.assert_close(few.images.view(4, 2, -1), all_of_them.images.view(4, 4, -1)[:, :2])


def test_confidence_is_the_mean_probability_over_the_views():
    toy, run = target(), Run()
    found = attack(run, toy=toy, restarts=1, keep=1, classes=(3, 1))
    crop = RandomCrop((0.5, 0.9), (0.8, 1.2), flip=0.5, name="harsh")
    streams = run.streams(torch.tensor([3, 1]), torch.tensor([0, 0]))
    views = [toy.scores(crop(found.images, streams, view))[[0, 1], [3, 1]] for view in range(4)]
    torch.testing.assert_close(found.confidence, torch.stack(views).mean(dim=0))


def test_without_flips_nothing_is_mirrored():
    toy, run = target(), Run()
    found = attack(run, toy=toy, restarts=1, keep=1, classes=(3, 1), flips=False)
    assert toy.ledger.spent[Access.SCORE] == 32 + 2 * 4  # the pool once, and the views
    crop = RandomCrop((0.5, 0.9), (0.8, 1.2), name="harsh")
    streams = run.streams(torch.tensor([3, 1]), torch.tensor([0, 0]))
    views = [toy.scores(crop(found.images, streams, view))[[0, 1], [3, 1]] for view in range(4)]
    torch.testing.assert_close(found.confidence, torch.stack(views).mean(dim=0))


def test_charges_one_query_per_image():
    toy, run = target(), Run()
    attack(run, toy=toy)
    pool, rows, steps, views, kept = 32, 16, 30, 4, 8
    assert toy.ledger.spent == {Access.WHITE_BOX: rows * steps, Access.SCORE: 2 * pool + rows * views}
    assert run.work == {
        "generator_forward": pool + rows * steps + rows + kept, "generator_backward": rows * steps,
        "target_forward": 2 * pool + rows * steps + rows * views, "target_backward": rows * steps,
    }  # fmt: skip
    assert SMOKE.sample_steps * 4 == rows * steps


def test_reports_progress_of_every_stage_to_its_end():
    last = {}
    attack(Run(batch_size=5, on_step=lambda stage, done, total: last.update({stage: (done, total)})))
    assert last == {"pool": (32, 32), "optimise": (480, 480), "select": (64, 64)}  # pictures, and views of them


def moved(prior, **settings):
    """How far one Adam step of the default size goes: the step size itself."""
    plan = replace(SMOKE, lr=None, steps=1, **settings)
    labels = torch.tensor([0])
    start = torch.zeros(1, 4)
    streams = Run().streams(labels, labels)
    return (plan.search().descend(target(), prior, start, labels, streams, Run()).latents - start).abs().max().item()


class PlainPrior(Prior):
    z = ToySpace()


def test_the_step_size_follows_the_kind_of_prior():
    assert moved(ToyPrior()) == pytest.approx(0.005, rel=1e-3)
    assert moved(PlainPrior()) == pytest.approx(0.03, rel=1e-3)


def test_runs_on_a_prior_without_styles():
    assert attack(prior=PlainPrior()).images.shape == (8, 3, 8, 8)


def test_every_stage_shows_the_target_the_middle_of_the_image():
    class Bordered(nn.Module):
        """Sees the outermost pixels only."""

        def forward(self, images):
            inner = torch.zeros(8, 8).index_put((torch.tensor(0),), torch.tensor(1.0))
            return torch.stack([(images * inner).sum(dim=(1, 2, 3)), images.new_zeros(len(images))], dim=1)

    class Frame(ToySpace):
        def decode(self, latents):
            frame = torch.ones(8, 8)
            frame[2:6, 2:6] = 0
            return latents.sigmoid()[:, :1, None, None] * frame.expand(3, 8, 8)

    prior = PlainPrior()
    prior.z = Frame()

    def confidence(crop):
        return attack(toy=TorchTarget(Bordered(), 2, nn.Identity()), prior=prior, classes=(0,), crop=crop).confidence

    assert confidence(1.0).min() > 0.9
    torch.testing.assert_close(confidence(0.4), torch.full((2,), 0.5))


def test_a_broken_target_is_named():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    nn.init.constant_(net[1].weight, torch.nan)
    with pytest.raises(Diverged, match=r"stage 'optimise' at step 0 of 30 for classes \[0, 1, 2, 3\]"):
        attack(toy=TorchTarget(net, 4, net[1]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep": 9, "restarts": 8}, "keep <= restarts <= pool, got 9, 8"),
        ({"pool": 8, "restarts": 9, "keep": 1}, "keep <= restarts <= pool, got 1, 9, 8"),
        ({"steps": 0}, "expected steps"),
        ({"crop": 1.5}, "crop <= 1"),
        ({"lr": 0.0}, "lr > 0"),
        ({"truncation": 1.5}, "truncation <= 1"),
        ({"harsh": (0.9, 0.5)}, "expected 0 < area <= 1"),
        ({"gentle": (0.0, 0.5)}, "expected 0 < area <= 1"),
    ],
)
def test_refuses_settings_out_of_range(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PPA(**wrong)


def test_starts_from_styles_half_way_to_the_average():
    index = torch.arange(32)
    drawn = ToySpace().draw(Run().streams(torch.full_like(index, -1), index).normal("pool", 4))
    starts = candidates(restarts=32, classes=(0,))[0]
    torch.testing.assert_close(starts[starts[:, 0].argsort()], drawn[drawn[:, 0].argsort()] / 2)


def test_the_generator_to_search_is_a_setting():
    assert PPA().recipes == ("gmi-gan",)
    assert PPA(generator="stylegan2").recipes == ("stylegan2",)


def test_ships_the_published_settings():
    published = PPA()
    assert published.truncation == 0.5
    assert (published.pool, published.restarts, published.keep) == (5000, 200, 50)
    assert (published.steps, published.views, published.betas) == (70, 100, (0.1, 0.1))
    assert (published.gentle, published.harsh, published.stretch) == ((0.9, 1.0), (0.5, 0.9), (0.8, 1.2))


class FramedSpace(ToySpace):
    """Images that are black but for a bright frame of one pixel."""

    def decode(self, latents):
        frame = torch.ones(len(latents), 3, 8, 8)
        frame[:, :, 1:-1, 1:-1] = 0
        return frame * (1 + 0 * latents.sum(dim=1)).view(-1, 1, 1, 1)


class FramedPrior(ToyPrior):
    z = w = FramedSpace()


class Recorder(nn.Module):
    """Keeps the brightest pixel that a network is shown."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 4)
        self.brightest = 0.0

    def forward(self, images):
        self.brightest = max(self.brightest, float(images.detach().max()))
        return self.head(images.flatten(1))


def test_no_stage_shows_the_target_what_the_crop_cuts_away():
    seen = Recorder()
    attack(prior=FramedPrior(), toy=TorchTarget(seen, 4, seen.head), crop=0.6)
    assert seen.brightest < 1e-6
    attack(prior=FramedPrior(), toy=TorchTarget(seen, 4, seen.head), crop=1.0)
    assert seen.brightest > 0.9


def test_what_is_returned_is_what_the_target_was_shown():
    assert attack(prior=FramedPrior(), crop=0.6).images.max() < 1e-6
    assert attack(prior=FramedPrior(), crop=1.0).images.max() > 0.9


@pytest.mark.parametrize("changed", [{"gentle": (0.3, 0.4)}, {"betas": (0.9, 0.9)}, {"harsh": (0.2, 0.3)}])
def test_every_setting_of_the_search_and_the_ranking_matters(changed):
    usual, other = attack(), attack(**changed)
    what = "confidence" if "harsh" in changed else "images"
    assert not torch.allclose(getattr(usual, what), getattr(other, what), atol=1e-6)
