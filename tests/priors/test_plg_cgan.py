from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.core.prior import ConditionalPrior
from mi_audit.core.target import Access, TorchTarget
from mi_audit.priors.plg_cgan import PLGCGan
from mi_audit.train import gan
from tests import toy
from tests.toy import public


def target(size: int = 32, channels: int = 3, classes: int = 4) -> TorchTarget:
    """The quadrants of the image."""
    head = nn.Linear(4 * channels, classes)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[torch.arange(4), torch.arange(4)] = 5.0
        head.bias.zero_()
    return TorchTarget(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), head), classes, head)


def smoke(profile: str = "quick", **settings) -> PLGCGan:
    return PLGCGan(**{"profile": profile, "steps": 2, "batch_size": 4, **settings})


def fitted(recipe: PLGCGan, data: Dataset, seed: int = 0, asked=None, **more) -> dict[str, torch.Tensor]:
    return recipe.fit(data, asked or target(channels=data.channels), seed, "cpu", lambda *_: None, **more)


def stopped(monkeypatch):
    """Keeps the labelled images and the settings that training is asked for, instead of training."""
    seen = []

    def keep(networks, data, settings, **more):
        seen.append((data, settings))
        return networks

    monkeypatch.setattr(gan, "fit", keep)
    return seen


@pytest.mark.parametrize(("profile", "channels"), [("quick", 1), ("standard", 3)])
def test_a_fitted_prior_is_restored_from_its_weights(profile, channels):
    recipe = smoke(profile)
    weights = fitted(recipe, public(32, channels))
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in weights.values())
    prior = recipe.restore(weights, 32, channels, "cpu")
    assert isinstance(prior, ConditionalPrior)
    latents = prior.z.draw(torch.randn(3, prior.z.width, generator=torch.Generator().manual_seed(0)))
    images = prior.decode_as(latents, torch.tensor([0, 1, 3]))
    assert images.shape == (3, channels, 32, 32) and images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(prior.decode_as(latents[1:2], torch.tensor([1])), images[1:2])


def test_without_a_wish_the_last_number_picks_the_class_evenly():
    recipe = smoke(steps=1)
    prior = recipe.restore(fitted(recipe, public()), 32, 3, "cpu")
    with torch.no_grad():
        for block in prior._generator.blocks:
            block.norm.shift.copy_(torch.arange(4.0)[:, None].expand_as(block.norm.shift))  # classes that differ
    latents = torch.zeros(5, 129)
    latents[:, -1] = torch.tensor([-9.0, -0.6, 0.1, 0.7, 9.0])  # quartiles of the normal: -0.674, 0, 0.674
    assert torch.equal(prior.z.decode(latents), prior.decode_as(latents, torch.tensor([0, 1, 2, 3, 3])))


def test_decoding_is_differentiable_in_the_latents_and_weights_take_no_gradient():
    recipe = smoke()
    prior = recipe.restore(fitted(recipe, public()), 32, 3, "cpu")
    latents = torch.randn(2, 129, requires_grad=True)
    prior.decode_as(latents, torch.tensor([0, 1])).sum().backward()
    assert latents.grad is not None and latents.grad[:, :-1].abs().sum() > 0 and not latents.grad[:, -1].any()
    assert not any(weight.requires_grad for weight in prior._generator.parameters())


def test_the_same_seed_gives_the_same_weights():
    first, again, other = (fitted(smoke(), public(), seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_class_is_trained_on_the_images_that_the_target_takes_for_it(monkeypatch):
    seen = stopped(monkeypatch)
    weights = fitted(smoke(top_n=2), replace(public(), labels=torch.zeros(8, dtype=torch.int64)))
    ((data, _),) = seen
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    expected = public()
    for label in range(4):
        rows = {tuple(image.flatten().tolist()) for image in data.pixels[data.labels == label]}
        assert rows == {tuple(image.flatten().tolist()) for image in expected.pixels[expected.labels == label]}
    assert weights["reuse"] == 0 and data.fingerprint != expected.fingerprint


def test_reused_images_are_reported():
    weights = fitted(smoke(top_n=8), public())  # every class takes all eight
    assert smoke().found(weights) == {"reused_images": 0.75}


@pytest.mark.parametrize(("top_n", "each"), [(None, 8), (3, 3)])
def test_images_per_class(monkeypatch, top_n, each):
    seen = stopped(monkeypatch)
    fitted(smoke(top_n=top_n), public())
    assert torch.bincount(seen[0][0].labels).tolist() == [each] * 4  # 30 of 8 are 8
    large = toy.dataset(per_class=40, size=32)
    fitted(smoke(), large)
    assert torch.bincount(seen[1][0].labels).tolist() == [40] * 4  # 160 images for 4 classes


def test_the_target_is_asked_once_about_every_public_image_and_once_per_generated_one():
    asked = target()
    fitted(smoke(steps=3), public(), asked=asked)
    assert asked.ledger.spent == {Access.SCORE: 8, Access.WHITE_BOX: 3 * 4}
    asked = target()
    fitted(smoke("standard", steps=5), public(), asked=asked)
    assert asked.ledger.spent == {Access.SCORE: 8, Access.WHITE_BOX: 4}  # one generator update


def test_the_margin_draws_generated_images_to_the_class():
    recipe = smoke(steps=60, lr=2e-2, batch_size=8)
    asked, labels = target(), torch.arange(4).repeat(8)
    noise = torch.randn(32, 129, generator=torch.Generator().manual_seed(1))

    def sureness(weight):
        weights = fitted(replace(recipe, margin_weight=weight), public())
        images = recipe.restore(weights, 32, 3, "cpu").decode_as(noise, labels)
        return asked.scores(images).gather(1, labels[:, None]).mean()

    assert sureness(100.0) > sureness(0.0) + 0.1


def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if done == 3:
            raise Stop

    settings = smoke()._settings
    monkeypatch.setattr(PLGCGan, "_settings", lambda *given: replace(settings.__func__(*given), save_every=2))
    recipe, path = smoke(steps=4), tmp_path / "prior.checkpoint"
    expected = fitted(recipe, public())
    with pytest.raises(Stop):
        recipe.fit(public(), target(), 0, "cpu", stop, checkpoint=path)
    assert path.exists()
    found = fitted(recipe, public(), checkpoint=path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("profile", "lr", "steps", "critic_steps", "flip"),
    [("quick", 4e-4, 4600, 1, 0.0), ("standard", 2e-4, 150_000, 5, 0.5)],
)
def test_profiles_train_by_their_recipe(monkeypatch, profile, lr, steps, critic_steps, flip):
    seen = stopped(monkeypatch)
    fitted(PLGCGan(profile=profile), public(64), asked=target(64))
    ((_, settings),) = seen
    crop, jitter, rotation = settings.objective.view.views
    assert (settings.lr, settings.steps, settings.betas) == (lr, steps, (0.0, 0.9))
    assert (settings.objective.critic_steps, settings.objective.margin_weight) == (critic_steps, 0.2)
    assert (crop.area, crop.flip, jitter.share, rotation.degrees, rotation.share) == ((0.8, 1.0), flip, 0.5, 5.0, 0.5)
    assert settings.dither == 1 / 256


def test_planned_shortened_and_described():
    assert PLGCGan(steps=7).planned_steps(9600, 64, 3) == 7
    assert PLGCGan(top_n=4).shortened(3) == PLGCGan(top_n=4, steps=3)
    described = PLGCGan().describe(64, 3)
    assert described["steps"] == 150_000 and "published" in str(described["recipe"])
    assert described["generator_parameters_per_class"] == 2 * (1024 + 2 * (512 + 256 + 128) + 64)
    assert "not published" in str(PLGCGan(profile="quick").describe(64, 3)["recipe"])


def test_without_a_target_nothing_is_fitted():
    with pytest.raises(ConfigError, match="expected a target"):
        smoke().fit(public(), None, 0, "cpu", lambda *_: None)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"top_n": 0}, {"lr": -1.0}])
def test_settings_that_train_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match="expected top_n, steps, batch_size and lr above 0"):
        PLGCGan(**settings)


@pytest.mark.parametrize("settings", [{"margin_weight": -1.0}, {"flip": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="expected margin_weight >= 0 and 0 <= flip <= 1"):
        PLGCGan(**settings)
