import torch

from mi_audit.priors.pixels import Pixels
from tests.toy import dataset


def silent(label, done, total):
    raise AssertionError("there is nothing to train")


def fitted():
    recipe = Pixels()
    return recipe.restore(recipe.fit(dataset(), None, 0, "cpu", silent), 8, 3, "cpu")


def test_latents_are_pixels_in_units_around_grey():
    space = fitted().search
    assert space.width == 3 * 8 * 8
    latents = torch.zeros(1, 3, 8, 8)
    latents[0, 0, 0, 0], latents[0, 1, 2, 3] = 1.0, -2.0
    image = space.decode(latents)
    assert image[0, 0, 0, 0] == 0.725 and abs(image[0, 1, 2, 3] - 0.05) < 1e-6 and image[0, 2, 0, 0] == 0.5


def test_every_picture_and_nothing_else_can_be_reached():
    space = fitted().z
    noise = torch.randn(50, space.width, generator=torch.Generator().manual_seed(0))
    drawn = space.decode(space.draw(3 * noise))
    assert drawn.shape == (50, 3, 8, 8) and drawn.min() >= 0 and drawn.max() <= 1
    assert drawn.min() < 1e-6 and drawn.max() > 1 - 1e-6
    within = 2 * noise.clamp(-1, 1)
    assert torch.equal(space.draw(within).flatten(1), within)


def test_depends_on_no_image_and_says_so():
    recipe = Pixels()
    one, other = (recipe.fit(dataset(seed=seed), None, seed, "cpu", silent) for seed in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    facts = recipe.describe(32, 1)
    assert "no public image" in facts["recipe"] and facts["latent"] == 1024
    assert recipe.planned_steps(1000, 32, 1) == 0 and recipe.shortened(3) == recipe
