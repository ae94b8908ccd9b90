from dataclasses import replace
from typing import get_args

import pytest
import torch

from mi_audit.attacks.ppdg_mi import PPDGMI
from mi_audit.core.errors import ConfigError
from mi_audit.core.run import Run
from mi_audit.core.target import Access, TorchTarget
from tests.priors import test_gmi_gan, test_kedmi_gan, test_stylegan2
from tests.toy import TunableSpace, TunableToyPrior, classifier, public, target

SMOKE = PPDGMI(**PPDGMI.smoke)


def attack(run=None, prior=None, toy=None, classes=(0, 1, 2, 3), **settings):
    toy = toy or target()
    return replace(SMOKE, **settings).run(toy, prior or TunableToyPrior(), torch.tensor(classes), run or Run())


def first_round(classes=(0, 1, 2, 3), **settings):
    search = replace(SMOKE, **settings).search()
    return search.search(target(), TunableToyPrior(), torch.tensor(classes), Run())


class Watched(TunableToyPrior):
    """Notes every copy's weights after the attack, and never shares its own."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def copied(self):
        made = TunableToyPrior()
        self.copies.append(made)
        return made


def test_the_prior_is_the_same_afterwards():
    prior = TunableToyPrior()
    before = prior.z.weights.clone()
    first = attack(prior=prior, classes=(0, 1))
    assert torch.equal(prior.z.weights, before) and not prior.z.weights.requires_grad and prior.z.weights.grad is None
    assert torch.equal(attack(prior=prior, classes=(0, 1)).images, first.images)


def test_every_class_tunes_a_generator_of_its_own():
    prior = Watched()
    attack(prior=prior, pseudo=4, tune_lr=0.05)
    weights = torch.stack([own.z.weights.data for own in prior.copies])
    assert weights.shape == (4, 4) and not torch.allclose(weights[0], weights[1], atol=1e-3)
    assert all(not own.z.weights.requires_grad and own.z.weights.grad is None for own in prior.copies)


def test_later_rounds_go_on_with_the_tuned_generator():
    prior = Watched()
    attack(prior=prior, classes=(1,), rounds=3)
    (own,) = prior.copies
    twice = own.z.weights.clone()
    prior = Watched()
    attack(prior=prior, classes=(1,), rounds=2)
    assert not torch.allclose(twice, prior.copies[0].z.weights, atol=1e-4)


class Dull(TunableToyPrior):
    """Its copies make everything half as bright: as if tuning had done so."""

    def copied(self):
        made = TunableToyPrior()
        made.z.weights.data.div_(2)
        return made


def test_the_last_round_searches_the_tuned_generator_and_its_images_are_returned():
    # Pictures of quadrants of weight 0.45 stay below 0.45 plus what tuning adds.
    bright, dull = attack(), attack(prior=Dull(), tune_lr=1e-6)
    assert dull.images.max() <= 0.4501 and bright.images.max() > 0.8
    assert dull.confidence.max() < bright.confidence.max()


def tuned_on(monkeypatch, **settings):
    """The images and latents that the generator is tuned on, class by class."""
    seen = []

    def tune(self, prior, latents, images, run):
        seen.append((latents, images))
        return plain(self, prior, latents, images, run)

    from mi_audit.nn.pseudo_private import PseudoPrivateTuning

    plain = PseudoPrivateTuning.tune
    monkeypatch.setattr(PseudoPrivateTuning, "tune", tune)
    attack(**settings)
    return seen


def test_pseudo_private_data_are_the_most_robust_images_of_the_first_round(monkeypatch):
    found = first_round()
    expected = TunableToyPrior().z.decode(found.latents).view(4, 4, 3, 8, 8)[:, :2]
    seen = tuned_on(monkeypatch)
    assert (found.robustness.view(4, 4).diff(dim=1) <= 0).all()
    torch.testing.assert_close(torch.stack([images for _, images in seen]), expected, atol=1e-5, rtol=0)


def test_pseudo_private_data_are_not_cropped(monkeypatch):
    ((_, images),) = tuned_on(monkeypatch, classes=(0,), crop=0.5)
    ranked = first_round(classes=(0,), crop=0.5)
    torch.testing.assert_close(images, TunableToyPrior().z.decode(ranked.latents[:2]), atol=1e-5, rtol=0)


def test_the_tuned_latents_are_typical_ones_and_not_those_of_the_search(monkeypatch):
    # They come from the average latent, so a short projection has not gone far from it.
    ((latents, _),) = tuned_on(monkeypatch, classes=(2,), project_steps=3, project_lr=0.01)
    assert latents.abs().max() < 0.2 < first_round(classes=(2,)).latents.abs().max()


def test_tuning_moves_the_class_towards_random_latents():
    # What the method is for: of random latents, the target takes more for the class.
    prior = Watched()
    attack(prior=prior, classes=(3,), pseudo=4, project_steps=5, project_lr=0.01, tune_steps=40, tune_lr=0.05)

    def taken(generator):
        drawn = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        return target().scores(generator.z.decode(drawn))[:, 3].mean().item()

    assert taken(prior.copies[0]) > taken(TunableToyPrior()) + 0.05


def test_charges_one_query_per_image_and_none_for_the_tuning():
    toy, run = target(), Run()
    attack(run, toy=toy)
    rows, steps, views, kept, pseudo = 16, 30, 4, 8, 8
    pools = 32 + 4 * 32  # one for all classes, then one for each
    tuning = pseudo * (20 + 10)
    assert toy.ledger.spent == {Access.WHITE_BOX: 2 * rows * steps, Access.SCORE: 2 * pools + 2 * rows * views}
    assert run.work == {
        "generator_forward": pools + 2 * rows * steps + 2 * rows + pseudo + tuning + kept,
        "generator_backward": 2 * rows * steps + tuning,
        "critic_forward": pseudo * 20, "critic_backward": pseudo * 20,
        "target_forward": 2 * pools + 2 * rows * steps + 2 * rows * views, "target_backward": 2 * rows * steps,
    }  # fmt: skip


def test_reports_progress_of_every_stage_to_its_end():
    told = []
    attack(Run(batch_size=3, on_step=lambda *what: told.append(what)), rounds=3, classes=(0, 1))
    last = {stage: (done, total) for stage, done, total in told}
    each = 2 * 20 + 2 * 10 + 4 * 30  # sample-steps of a later round of one class
    assert last == {"pool": (32, 32), "optimise": (240, 240), "select": (32, 32), "refine": (4 * each, 4 * each)}
    refined = [done for stage, done, _ in told if stage == "refine"]
    assert refined == sorted(refined)
    assert replace(SMOKE, rounds=3).sample_steps == 4 * 30 + 2 * each


def test_curves_are_means_over_the_classes():
    both, one, other = (attack(classes=classes).curves for classes in ((0, 1), (0,), (1,)))
    assert [curve.stage for curve in both] == ["round 1", "project 2", "tune 2", "round 2"]
    for mean, first, second in zip(both, one, other, strict=True):
        assert mean.steps == first.steps
        halves = [(a + b) / 2 for a, b in zip(first.losses, second.losses, strict=True)]
        assert mean.losses == pytest.approx(halves, abs=1e-4)
    assert [curve.stage for curve in attack(classes=(0,), rounds=3).curves][-3:] == ["project 3", "tune 3", "round 3"]


def test_no_gradient_reaches_the_target():
    net = classifier()
    toy = TorchTarget(net, num_classes=4, head=net[1])
    before = [weight.clone() for weight in net.parameters()]
    attack(toy=toy)
    assert all(weight.grad is None for weight in net.parameters())
    assert all(torch.equal(weight, old) for weight, old in zip(net.parameters(), before, strict=True))


def test_a_prior_without_a_critic_is_tuned_too():
    class Plain(TunableToyPrior.__mro__[1]):
        def __init__(self):
            self.z = TunableSpace()

        @property
        def decoder_weights(self):
            return (self.z.weights,)

    run = Run()
    assert attack(run, prior=Plain()).images.shape == (8, 3, 8, 8)
    assert "critic_forward" not in run.work


@pytest.mark.parametrize(
    "changed",
    [
        {"project_lr": 0.02}, {"project_steps": 5}, {"noise": 1.0}, {"critic_weight": 50.0}, {"tune_lr": 0.2},
        {"tune_steps": 2}, {"pseudo": 4}, {"rounds": 3}, {"gentle": (0.3, 0.4)}, {"betas": (0.9, 0.9)}, {"steps": 5},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_matters(changed):
    usual, other = attack(classes=(0,)), attack(classes=(0,), **changed)
    assert not torch.equal(usual.images, other.images)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep": 101}, "restarts <= pool, got 101, 5, 100, 500"),
        ({"pseudo": 0}, "pseudo <= restarts"),
        ({"pseudo": 101}, "pseudo <= restarts"),
        ({"keep": 0}, "expected 1 <= keep"),
        ({"restarts": 501}, "restarts <= pool"),
        ({"rounds": 1}, "one round is `ppa`"),
        ({"tune_steps": 0}, "tune_steps >= 1"),
        ({"project_steps": 0}, "project_steps"),
        ({"steps": 0}, "expected rounds"),
        ({"views": 0}, "expected rounds"),
        ({"tune_lr": 0.0}, "tune_lr > 0"),
        ({"project_lr": -1.0}, "project_lr"),
        ({"noise": -0.1}, "noise and critic_weight >= 0"),
        ({"critic_weight": -0.1}, "critic_weight >= 0"),
        ({"crop": 0.0}, "0 < crop"),
        ({"truncation": 1.5}, "truncation <= 1"),
        ({"lr": 0.0}, "lr > 0"),
        ({"harsh": (0.9, 0.5)}, "expected 0 < area"),
    ],
)
def test_refuses_settings_out_of_range(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PPDGMI(**wrong)


def test_ships_the_published_settings():
    published = PPDGMI()
    assert (published.rounds, published.pseudo, published.project_steps, published.tune_steps) == (2, 5, 300, 150)
    assert (published.project_lr, published.tune_lr) == (0.01, 3e-4)
    assert (published.noise, published.critic_weight) == (0.05, 0.1)
    assert (published.pool, published.restarts, published.keep, published.steps) == (500, 100, 100, 70)
    assert (published.truncation, published.views, published.betas) == (0.5, 100, (0.1, 0.1))
    assert PPDGMI(generator="stylegan2").recipes == ("stylegan2",)


OFFERED = get_args(PPDGMI.__dataclass_fields__["generator"].type)
MADE = {"gmi-gan": test_gmi_gan, "kedmi-gan": test_kedmi_gan, "stylegan2": test_stylegan2}


@pytest.mark.parametrize("name", OFFERED)
def test_every_prior_on_offer_can_be_tuned_on_a_copy(name):
    made = MADE[name]
    recipe, data = made.smoke(), public(32, 1)
    prior = recipe.restore(made.fitted(recipe, data), 32, 1, "cpu")
    noise = torch.randn(2, prior.search.width, generator=torch.Generator().manual_seed(0))
    latents = prior.search.draw(noise)
    before, own = prior.search.decode(latents), prior.copied()
    assert torch.equal(own.search.decode(latents), before)

    tuning = replace(SMOKE._tuning(), tune_steps=5, tune_lr=1e-3)
    curve = tuning.tune(own, latents, torch.rand(2, 1, 32, 32), Run())
    assert curve.losses[-1] < curve.losses[0]
    assert not torch.equal(own.search.decode(latents), before)
    assert torch.equal(prior.search.decode(latents), before)
    torch.testing.assert_close(own.search.draw(noise), latents, rtol=0, atol=0)  # the mapping network stays
    assert not own.search.decode(latents).requires_grad
    assert not any(weight.requires_grad or weight.grad is not None for weight in prior.decoder_weights)
