import pytest
import torch

from mi_audit.attacks.vmi import VMI
from mi_audit.core.errors import ConfigError
from mi_audit.core.run import Run
from mi_audit.core.target import Access
from mi_audit.nn.posteriors import GaussianPosterior
from tests.toy import ToyPrior, ToySpace, prototypes, target, watched

FLOW = {"posterior": "flow", "scales": 2, "flow_steps": 2, "hidden": 4}


def attack(run=None, prior=None, toy=None, classes=(0, 1, 2, 3), **settings):
    toy = toy or target()
    return VMI(**VMI.smoke | settings).run(toy, prior or ToyPrior(), torch.tensor(classes), run or Run())


@pytest.mark.parametrize("family", [{}, FLOW], ids=["gaussian", "flow"])
def test_draws_pictures_of_every_class(family):
    found = attack(steps=100, images=8, lr=0.02, **family)
    nearest = torch.cdist(found.images.flatten(1), prototypes().flatten(1)).argmin(1)
    assert (nearest == found.labels).float().mean() >= 0.9
    assert found.images.view(4, 8, -1).std(dim=1).mean(dim=1).min() > 1e-3  # a distribution, not a point
    torch.testing.assert_close(found.confidence, target().scores(found.images)[range(32), found.labels])


@pytest.mark.parametrize("family", [{}, FLOW], ids=["gaussian", "flow"])
def test_a_heavy_divergence_keeps_the_pictures_as_varied_as_the_prior(family):
    def spread(weight):
        found = attack(steps=200, images=40, divergence_weight=weight, lr=0.002, **family)
        return found.images.view(4, 40, -1).std(dim=1).mean()

    prior = ToyPrior().z
    noise = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    free, held = spread(0.0), spread(5.0)
    assert held > free
    assert held == pytest.approx(float(prior.decode(noise).flatten(1).std(dim=0).mean()), rel=0.15)


def test_the_target_is_surer_than_of_random_samples():
    found = attack(images=20)
    random = ToyPrior().z.decode(Run().streams(found.labels, torch.arange(80)).normal("z", 4))
    assert found.confidence.mean() > target().scores(random)[range(80), found.labels].mean() + 0.1


def test_latents_are_drawn_from_the_noise_the_prior_knows():
    class Doubled(ToySpace):
        def draw(self, noise):
            self.noise = noise
            return 2 * noise

        def decode(self, latents):
            assert torch.equal(latents, 2 * self.noise)
            return super().decode(latents)

    prior = ToyPrior()
    prior.w = Doubled()
    attack(prior=prior, steps=2)


def test_one_step_by_hand():
    start, end = watched(attack, classes=(0,), steps=1, samples=2, images=1, lr=0.5, divergence_weight=0.1)
    # q is N(0, I), so the divergence has no slope; logits are 4 s with s = sigmoid(z); two draws are averaged
    s = start.sigmoid()
    slope = 4 * s * (1 - s) * ((4 * s).softmax(dim=1) - torch.tensor([1.0, 0, 0, 0]))
    mean, log_variance = -0.5 * slope.mean(dim=0), -0.5 * (slope * start / 2).mean(dim=0)
    streams = Run().streams(torch.tensor([0]), torch.tensor([0]))
    drawn = GaussianPosterior(4).sample(torch.cat([mean, log_variance])[None], streams, 1, 1)
    torch.testing.assert_close(end, drawn.clamp(-3, 3))


def test_asks_for_every_sample_of_every_step_and_once_at_the_end():
    toy, run = target(), Run()
    attack(run, toy=toy)
    assert toy.ledger.spent == {Access.WHITE_BOX: 4 * 60 * 4, Access.SCORE: 4 * 3}
    assert run.work["generator_backward"] == VMI(**VMI.smoke).sample_steps * 4
    assert run.work["critic_forward"] == 0


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"samples": 0}, {"hidden": 0}, {"lr": 0.0}, {"divergence_weight": -1.0}]
)
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"expected .*{next(iter(wrong))}"):
        VMI(**wrong)


def test_ships_the_published_settings():
    published = VMI()
    assert (published.posterior, published.steps, published.samples, published.images) == ("flow", 4710, 64, 100)
    assert (published.lr, published.momentum, published.divergence_weight) == (1e-4, 0.9, 1e-3)
    assert (published.scales, published.flow_steps, published.hidden) == (3, 10, 100)
