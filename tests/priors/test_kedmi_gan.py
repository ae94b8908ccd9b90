from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.core.prior import CriticPrior
from mi_audit.core.target import Access, TorchTarget
from mi_audit.priors.kedmi_gan import KEDMIGan
from mi_audit.train import gan
from tests.toy import public


def target(channels: int = 3, classes: int = 5) -> TorchTarget:
    """Brightness per class; a batch norm and dropout tell train mode from eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(channels, classes)
        nn.init.normal_(head.weight)
    pool = nn.AdaptiveAvgPool2d(1)
    net = nn.Sequential(pool, nn.BatchNorm2d(channels), nn.Dropout(0.5), nn.Flatten(), head)
    return TorchTarget(net, classes, head)


def smoke(profile: str = "quick", **settings) -> KEDMIGan:
    return KEDMIGan(**{"profile": profile, "steps": 2, "batch_size": 4, **settings})


def fitted(recipe: KEDMIGan, data: Dataset, seed: int = 0, asked=None, **more) -> dict[str, torch.Tensor]:
    return recipe.fit(data, asked or target(data.channels), seed, "cpu", lambda *_: None, **more)


@pytest.mark.parametrize(("profile", "channels", "latent"), [("quick", 1, 128), ("standard", 3, 100)])
def test_a_fitted_prior_is_restored_from_its_weights(profile, channels, latent):
    recipe = smoke(profile)
    weights = fitted(recipe, public(32, channels))
    assert {name.split(".")[0] for name in weights} == {"generator", "critic"}
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in weights.values())
    prior = recipe.restore(weights, 32, channels, "cpu")
    assert isinstance(prior, CriticPrior) and prior.z.width == latent
    noise = torch.randn(3, prior.z.width, generator=torch.Generator().manual_seed(0))
    images = prior.z.decode(prior.z.draw(noise))
    assert images.shape == (3, channels, 32, 32) and images.min() >= 0 and images.max() <= 1
    scores = prior.realism(images)
    torch.testing.assert_close(prior.realism(images[1:2]), scores[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prior.z.decode(noise[1:2]), images[1:2])


def test_realism_is_the_log_probability_of_being_real():
    recipe = smoke()
    prior = recipe.restore(fitted(recipe, public()), 32, 3, "cpu")
    images = torch.rand(4, 3, 32, 32)
    _, logits = prior.critic(images)
    odds = logits.exp().sum(dim=1)
    torch.testing.assert_close(prior.realism(images), (odds / (odds + 1)).log())


def test_the_critic_remembers_public_images():
    recipe = smoke()
    prior = recipe.restore(fitted(recipe, public()), 32, 3, "cpu")
    assert prior.critic.comparison.compared.abs().sum() > 0
    assert len(prior.critic.comparison.compared.flatten(1).unique(dim=0)) == 8


def test_decoding_is_differentiable_in_the_latents_and_weights_take_no_gradient():
    recipe = smoke()
    prior = recipe.restore(fitted(recipe, public()), 32, 3, "cpu")
    latents = torch.randn(2, 128, requires_grad=True)
    prior.realism(prior.z.decode(latents)).sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


def test_the_same_seed_gives_the_same_weights():
    first, again, other = (fitted(smoke(), public(), seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_another_target_gives_other_weights():
    other = target()
    with torch.no_grad():
        other._head.weight.neg_()
    first, second = fitted(smoke(), public()), fitted(smoke(), public(), asked=other)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_target_is_asked_once_about_every_public_image():
    asked = target()
    fitted(smoke(steps=3), public(), asked=asked)
    assert asked.ledger.spent == {Access.SCORE: 8}


def test_in_train_mode_a_copy_of_the_target_is_asked_in_every_step():
    asked, before = target(), torch.get_rng_state()
    running = asked._model[1].running_mean.clone()
    weights = fitted(smoke(steps=3, target_mode="train"), public(), asked=asked)
    assert asked.ledger.spent == {Access.SCORE: 3 * 4}
    assert not any(module.training for module in asked._model.modules())
    assert torch.equal(asked._model[1].running_mean, running)
    assert torch.equal(torch.get_rng_state(), before)
    usual, again = fitted(smoke(steps=3), public()), fitted(smoke(steps=3, target_mode="train"), public())
    assert any(not torch.equal(weights[name], usual[name]) for name in weights)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path, monkeypatch, mode):
    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if done == 3:
            raise Stop

    settings = smoke()._settings
    monkeypatch.setattr(KEDMIGan, "_settings", lambda *given: replace(settings.__func__(*given), save_every=2))
    recipe, path = smoke(steps=4, target_mode=mode), tmp_path / "prior.checkpoint"
    expected = fitted(recipe, public())
    with pytest.raises(Stop):
        recipe.fit(public(), target(), 0, "cpu", stop, checkpoint=path)
    assert path.exists()
    found = fitted(recipe, public(), checkpoint=path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("profile", "lr", "steps", "critic_steps", "extra"),
    [("quick", 4e-4, 4600, 1, 1.0), ("standard", 2e-4, 960, 5, 0.0)],
)
def test_profiles_train_by_their_recipe(monkeypatch, profile, lr, steps, critic_steps, extra):
    seen = []

    def stop(networks, data, settings, **more):
        seen.append(settings)
        return networks

    monkeypatch.setattr(gan, "fit", stop)
    fitted(KEDMIGan(profile=profile, batch_size=1), public(64))
    (settings,) = seen
    assert (settings.lr, settings.steps, settings.objective.critic_steps) == (lr, steps, critic_steps)
    assert settings.objective.adversarial_weight == extra
    assert settings.objective.entropy_weight == pytest.approx(1e-4 * 64)
    assert (settings.shift, settings.brightness) == ((0.1, 0.2) if profile == "quick" else (0.0, 0.0))


def test_planned_and_shortened_steps():
    assert KEDMIGan(profile="standard").planned_steps(30_000, 64, 3) == 120 * 468
    assert KEDMIGan(profile="quick").planned_steps(9600, 32, 1) < 1000
    assert KEDMIGan(flips=True).shortened(3) == KEDMIGan(flips=True, steps=3)


def test_the_description_names_the_mode_of_the_target():
    description = KEDMIGan(target_mode="train").describe(64, 3)
    assert description["target"] == "in train mode" and description["steps"] == "120 epochs"
    assert "not published" in str(KEDMIGan(profile="quick").describe(64, 3)["recipe"])


def test_without_a_target_nothing_is_fitted():
    with pytest.raises(ConfigError, match="expected a target"):
        smoke().fit(public(), None, 0, "cpu", lambda *_: None)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"batch_size": 0}, {"lr": -1.0}])
def test_settings_that_train_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match="expected steps, batch_size and lr above 0"):
        KEDMIGan(**settings)
