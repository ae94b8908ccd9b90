import pytest
import torch

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.core.prior import CriticPrior
from mi_audit.nn.adversarial import NonSaturatingR1, WassersteinGP
from mi_audit.priors.gmi_gan import GMIGan
from mi_audit.train import gan
from tests.toy import public


def smoke(profile: str = "quick", **settings) -> GMIGan:
    return GMIGan(**{"profile": profile, "steps": 2, "batch_size": 4, **settings})


def fitted(recipe: GMIGan, data: Dataset, seed: int = 0) -> dict[str, torch.Tensor]:
    return recipe.fit(data, None, seed, "cpu", lambda *_: None)


@pytest.mark.parametrize(("profile", "channels"), [("quick", 1), ("standard", 3)])
def test_a_fitted_prior_is_restored_from_its_weights(profile, channels):
    recipe = smoke(profile)
    weights = fitted(recipe, public(32, channels))
    assert {name.split(".")[0] for name in weights} == {"generator", "critic"}
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in weights.values())
    prior = recipe.restore(weights, 32, channels, "cpu")
    assert isinstance(prior, CriticPrior)
    noise = torch.randn(3, prior.z.width, generator=torch.Generator().manual_seed(0))
    images = prior.z.decode(prior.z.draw(noise))
    assert images.shape == (3, channels, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(prior.z.project(noise), noise)
    scores = prior.realism(images)
    assert scores.shape == (3,)
    torch.testing.assert_close(prior.realism(images[1:2]), scores[1:2])
    torch.testing.assert_close(prior.z.decode(noise[1:2]), images[1:2])


def test_the_published_prior_draws_100_numbers_and_the_light_one_128():
    assert smoke("standard").describe(64, 3)["latent"] == 100
    assert smoke("quick").describe(64, 3)["latent"] == 128


def test_decoding_is_differentiable_in_the_latents_and_weights_take_no_gradient():
    recipe = smoke()
    prior = recipe.restore(fitted(recipe, public()), 32, 3, "cpu")
    latents = torch.randn(2, 128, requires_grad=True)
    prior.realism(prior.z.decode(latents)).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0


def test_the_same_seed_gives_the_same_weights():
    first, again, other = (fitted(smoke(), public(), seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("profile", "objective", "lr", "steps"),
    [("quick", NonSaturatingR1(gamma=1.0, every=16, images=16), 4e-4, 4600), ("standard", WassersteinGP(), 2e-4, 960)],
)
def test_profiles_train_by_their_recipe(monkeypatch, profile, objective, lr, steps):
    seen = []

    def stop(networks, data, settings, **more):
        seen.append(settings)
        return networks

    monkeypatch.setattr(gan, "fit", stop)
    fitted(GMIGan(profile=profile, batch_size=1), public(64))
    assert seen[0].objective == objective
    assert seen[0].lr == lr
    assert seen[0].steps == steps
    assert not seen[0].flips
    assert (seen[0].shift, seen[0].brightness) == ((0.1, 0.2) if profile == "quick" else (0.0, 0.0))


def test_planned_and_shortened_steps():
    assert GMIGan(profile="standard").planned_steps(9600, 64, 3) == 120 * 150
    assert GMIGan(profile="quick").planned_steps(9600, 64, 3) == 4600
    assert GMIGan(profile="quick").planned_steps(9600, 32, 1) < 1000
    assert GMIGan(steps=7).planned_steps(9600, 64, 3) == 7
    assert GMIGan(flips=True).shortened(3) == GMIGan(flips=True, steps=3)


def test_the_description_tells_the_light_recipe_from_the_published_one():
    light, published = (GMIGan(profile=profile).describe(64, 3) for profile in ("quick", "standard"))
    assert "not published" in str(light["recipe"])
    assert light["objective"] == "non-saturating with lazy R1"
    assert published["objective"] == "WGAN-GP"
    assert published["steps"] == "120 epochs"
    assert (
        published["generator_parameters"] == 819_200 + 2 * 8192 + 25 * (512 * 256 + 256 * 128 + 128 * 64) + 896 + 4803
    )
    assert "CVPR 2020" in str(published["paper"])


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": -1}, {"batch_size": 0}, {"lr": -1.0}, {"lr": 0.0}])
def test_settings_that_train_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match="expected steps, batch_size and lr above 0"):
        GMIGan(**settings)


def test_images_of_an_odd_size_are_refused():
    with pytest.raises(ConfigError, match="got 24 pixels"):
        fitted(smoke(), public(24))
