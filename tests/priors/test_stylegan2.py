from dataclasses import replace

import pytest
import torch

from mi_audit.audit.fitting import cache_file
from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError, DataError, TargetError
from mi_audit.core.prior import Painting, StylePrior
from mi_audit.nn.adversarial import NonSaturatingR1
from mi_audit.nn.stylegan2 import Generator, Shape
from mi_audit.nn.stylegan2_objective import PathLengthR1
from mi_audit.priors.stylegan2 import StyleGAN2
from mi_audit.store.cache import Cache
from mi_audit.store.weights import write_weights
from mi_audit.train import gan
from tests.toy import public

TINY = Shape(size=64, channels=3, widths=(6, 5, 4, 3, 3), latent=5, style=4, depth=2)


def fitted(recipe: StyleGAN2, data: Dataset, seed: int = 0, **more) -> dict[str, torch.Tensor]:
    return recipe.fit(data, None, seed, "cpu", lambda *_: None, **more)


def smoke(**settings) -> StyleGAN2:
    return StyleGAN2(**StyleGAN2.smoke | settings)


def imported(folder, shape=TINY, seed=0):
    """A file like those that `mi-audit import` writes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Generator(shape)
    write_weights(folder / "faces.safetensors", net.state_dict(), {"licence": "research only"})
    return net.eval(), folder / "faces.safetensors"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_fitted_prior_is_restored_from_its_weights(channels):
    recipe = smoke()
    weights = fitted(recipe, public(32, channels))
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in weights.values())
    prior = recipe.restore(weights, 32, channels, "cpu")
    assert isinstance(prior, StylePrior)
    noise = torch.randn(3, prior.z.width, generator=torch.Generator().manual_seed(0))
    images = prior.z.decode(prior.z.draw(noise))
    assert images.shape == (3, channels, 32, 32) and images.min() >= 0 and images.max() <= 1
    assert len(images.unique(dim=0)) == 3
    torch.testing.assert_close(prior.z.decode(noise[1:2]), images[1:2])
    torch.testing.assert_close(prior.w.decode(prior.w.draw(noise)), images)
    assert prior.search is prior.w


def test_the_same_seed_gives_the_same_weights_and_training_moves_them():
    first, again, other = (fitted(smoke(), public(), seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.1.grow.weight"], other["blocks.1.grow.weight"])
    assert first["mapping.average"].abs().sum() > 0
    assert first["blocks.1.grow.strength"] != 0


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    recipe = smoke(profile="quick", steps=4, path_weight=1.0)
    settings = replace(recipe._settings(public()), save_every=2, chance=0.5, adapt=0.6)
    monkeypatch.setattr(StyleGAN2, "_settings", lambda *_: settings)
    whole = fitted(recipe, public())

    def stop(_stage, done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe.fit(public(), None, 0, "cpu", stop, checkpoint=tmp_path / "x")
    assert (tmp_path / "x").is_file()
    resumed = fitted(recipe, public(), checkpoint=tmp_path / "x")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_painting_in_parts_is_decoding_and_truncation_pulls_towards_the_average():
    recipe = smoke()
    prior = recipe.restore(fitted(recipe, public()), 32, 3, "cpu")
    styles = prior.w.draw(torch.randn(2, prior.w.width))
    halfway = prior.paint(styles, None, range(2))
    torch.testing.assert_close(prior.show(prior.paint(styles, halfway, range(2, prior.blocks))), prior.w.decode(styles))
    torch.testing.assert_close(prior.w.truncated(styles, 0.0), prior.w.mean.expand(2, -1))
    torch.testing.assert_close(prior.w.truncated(styles, 0.25), 0.25 * styles + 0.75 * prior.w.mean)


def test_decoding_is_differentiable_in_the_styles_and_weights_take_no_gradient():
    recipe = smoke()
    prior = recipe.restore(fitted(recipe, public()), 32, 3, "cpu")
    styles = prior.w.draw(torch.randn(2, prior.w.width)).requires_grad_()
    (gradient,) = torch.autograd.grad(prior.w.decode(styles).sum(), styles)
    assert gradient.abs().sum() > 0
    assert not any(weight.requires_grad for weight in prior._generator.parameters())


def test_imported_weights_are_taken_as_they_are_whatever_the_public_images(tmp_path):
    net, file = imported(tmp_path)
    recipe = StyleGAN2(weights=str(file))
    weights = fitted(recipe, public(32, 1))
    assert recipe.planned_steps(10, 32, 1) == 0
    assert all(torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items())
    assert recipe.describe(32, 1)["weights_licence"] == "research only"
    z = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = net(z)
    torch.testing.assert_close(recipe.restore(weights, 64, 3, "cpu").z.decode(z), own)
    grey = recipe.restore(weights, 64, 1, "cpu").z.decode(z)
    torch.testing.assert_close(grey[:, 0], 0.299 * own[:, 0] + 0.587 * own[:, 1] + 0.114 * own[:, 2])
    small = recipe.restore(weights, 32, 3, "cpu").z.decode(z)
    expected = torch.nn.functional.interpolate(own, size=(32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(small, expected)


def test_a_crop_shows_the_middle(tmp_path):
    net, file = imported(tmp_path)
    z = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = net(z)
    recipe = StyleGAN2(weights=str(file), crop=0.5)
    torch.testing.assert_close(
        recipe.restore(fitted(recipe, public()), 32, 3, "cpu").z.decode(z), own[:, :, 16:48, 16:48]
    )


def test_a_grey_generator_shows_colour_targets_three_equal_channels(tmp_path):
    _, file = imported(tmp_path, replace(TINY, channels=1))
    recipe = StyleGAN2(weights=str(file))
    images = recipe.restore(fitted(recipe, public()), 64, 3, "cpu").z.decode(torch.randn(2, 5))
    assert torch.equal(images[:, 0], images[:, 2]) and images.shape == (2, 3, 64, 64)


def test_weights_that_are_tuned_change_the_images():
    recipe = smoke()
    original = recipe.restore(fitted(recipe, public()), 32, 3, "cpu")
    styles = original.w.draw(torch.randn(2, original.w.width))
    before = original.w.decode(styles)
    copied = original.copied()
    torch.testing.assert_close(copied.w.decode(styles), before)
    for weight in copied.decoder_weights:
        weight.requires_grad_(True)
    slopes = torch.autograd.grad(copied.w.decode(styles).sum(), copied.decoder_weights)
    assert all(slope.isfinite().all() for slope in slopes) and slopes[-1].abs().sum() > 0
    for weight in copied.decoder_weights:
        weight.requires_grad_(False).add_(0.1)
    expected = copied._generator.paint(copied._generator.layered(styles)).colours
    torch.testing.assert_close(copied.w.decode(styles), copied.show(Painting(expected, expected)), atol=1e-3, rtol=0)
    assert not torch.allclose(copied.w.decode(styles), before, atol=1e-2)
    assert torch.equal(original.w.decode(styles), before)
    assert torch.equal(copied.copied().w.decode(styles), copied.w.decode(styles))


def test_the_place_in_the_cache_depends_on_what_the_file_holds(tmp_path):
    def place():
        recipe = StyleGAN2(weights=str(imported(tmp_path, seed=seed)[1]))
        return cache_file(Cache(tmp_path / "cache"), "stylegan2", recipe, public(), 32, None)

    seed = 0
    first, again = place(), place()
    seed = 1
    assert first == again != place()


def test_files_that_hold_no_generator_are_refused(tmp_path):
    write_weights(tmp_path / "x.safetensors", {"weight": torch.ones(2)}, {})
    with pytest.raises(DataError, match="expected a generator"):
        fitted(StyleGAN2(weights=str(tmp_path / "x.safetensors")), public())
    with pytest.raises(TargetError, match="no file"):
        fitted(StyleGAN2(weights=str(tmp_path / "y.safetensors")), public())


def chosen(recipe: StyleGAN2, size: int) -> gan.GanSettings:
    return recipe._settings(public(size))


def test_profiles_train_by_their_recipe():
    quick, standard = (chosen(StyleGAN2(profile=profile), 64) for profile in ("quick", "standard"))
    assert quick.objective == NonSaturatingR1(gamma=0.1, images=32)
    assert (quick.chance, quick.adapt, quick.steps) == (1.0, None, 3000)
    # 2e-4 64^2 / 32 = 0.0256 for images in [-1, 1]
    assert standard.objective == PathLengthR1(gamma=0.0064, images=32, path_weight=2.0)
    assert (standard.chance, standard.adapt, standard.steps) == (0.0, 0.6, 156_250)
    assert (standard.lr, standard.betas) == (0.0025, (0.0, 0.99))
    for batch_size in (8, 32, 64):
        one = chosen(StyleGAN2(batch_size=batch_size), 64)
        assert one.average == pytest.approx(0.5 ** (32 / 10_000)) and one.batch_size == batch_size


def test_the_description_tells_the_light_recipe_from_the_published_one():
    light, published = (StyleGAN2(profile=profile).describe(64, 3) for profile in ("quick", "standard"))
    assert "not published" in str(light["recipe"]) and light["latent"] == 64
    assert published["objective"] == "non-saturating with lazy R1 and path length" and published["latent"] == 512
    assert light["generator_parameters"] < 1e6 < 2e7 < published["generator_parameters"]
    assert StyleGAN2(flips=True).shortened(3) == StyleGAN2(flips=True, steps=3)


WRONG = [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"gamma": -1.0}, {"crop": 0.0}, {"crop": 1.1}]


@pytest.mark.parametrize("wrong", [*WRONG, {"path_weight": -1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        StyleGAN2(**wrong)


def test_images_of_an_odd_size_are_refused():
    with pytest.raises(ConfigError, match="got 24 pixels"):
        fitted(smoke(), public(24))


def test_departures_from_the_published_recipe_are_told():
    told = " ".join(StyleGAN2.deviations)
    assert all(word in told for word in ("shifts and brightness", "betas of Adam", "ramp-up", "a fifth", "`quick`"))
