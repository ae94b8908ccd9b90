import pytest
import torch
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.nn.gan import count_weights
from mi_audit.nn.gan_conditional import (
    ConditionalBatchNorm,
    ProjectionCritic,
    light_conditional,
    published_conditional,
)

SHAPES = [(32, 1), (32, 3), (64, 3), (128, 1)]


@pytest.mark.parametrize("make", [published_conditional, lambda *shape: light_conditional(*shape, 16)])
@pytest.mark.parametrize(("size", "channels"), SHAPES)
def test_networks_make_and_score_images_of_a_class(make, size, channels):
    generator, critic, latent, classes = make(size, channels, 5)
    labels = torch.tensor([0, 4])
    with torch.no_grad():
        images = generator(torch.randn(2, latent), labels)
        scores = critic(images, labels)
    assert classes == 5
    assert images.shape == (2, channels, size, size) and scores.shape == (2,)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0


def test_the_published_generator_at_64_pixels_has_the_published_layers():
    generator, critic, latent, _ = published_conditional(64, 3, 7)
    assert latent == 128 and generator.start[0].out_features == 16 * 1024
    assert [block.grow.weight.shape[:2] for block in generator.blocks] == [
        (512, 1024), (256, 512), (128, 256), (64, 128)
    ]  # fmt: skip
    assert generator.end[2].kernel_size == (1, 1)
    assert [block.two.weight.shape[:2] for block in critic.body[:-1]] == [
        (64, 64), (128, 64), (256, 128), (512, 256), (1024, 512)
    ]  # fmt: skip
    assert critic.embedding.weight.shape == (1024, 7)


def test_a_class_costs_two_numbers_per_normalised_channel():
    one, two = (count_weights(light_conditional(32, 1, classes, 16).generator) for classes in (1, 2))
    assert two - one == 2 * (64 + 32)


def test_a_conditional_norm_by_hand():
    norm = ConditionalBatchNorm(1, 2)
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([[1.0], [3.0]]))
        norm.shift.copy_(torch.tensor([[0.0], [5.0]]))
    maps = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)  # normalised already
    torch.testing.assert_close(norm(maps, torch.tensor([0, 1])).flatten(), torch.tensor([-1.0, 8.0]), atol=1e-4, rtol=0)
    assert (ConditionalBatchNorm(4, 3).scale == 1).all() and (ConditionalBatchNorm(4, 3).shift == 0).all()


def test_a_projection_by_hand():
    critic = ProjectionCritic(nn.Identity(), 2, 3).eval()
    maps = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).view(2, 2, 1, 1).expand(-1, -1, 2, 1)  # summed: twice that
    labels = torch.tensor([2, 0])
    weight, bias, table = critic.linear.weight, critic.linear.bias, critic.embedding.weight.T
    summed = 2 * torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    expected = (summed @ weight.T + bias).flatten() + (table[labels] * summed).sum(dim=1)
    torch.testing.assert_close(critic(maps, labels), expected)


def test_every_layer_of_a_critic_has_a_spectral_norm_of_one():
    for make in (published_conditional, lambda *shape: light_conditional(*shape, 16)):
        critic = make(32, 1, 4).critic
        layers = [m for m in critic.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert layers and all(hasattr(layer, "parametrizations") for layer in layers)
        critic.train()
        with torch.no_grad():
            for _ in range(30):
                critic(torch.rand(2, 1, 32, 32), torch.tensor([0, 1]))
        critic.eval()
        for layer in layers:
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.1)


def test_the_start_of_the_critic_is_the_same_for_the_same_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = light_conditional(32, 1, 2, 16).critic.state_dict()
        torch.manual_seed(0)
        again = light_conditional(32, 1, 2, 16).critic.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_other_sizes_are_refused():
    with pytest.raises(ConfigError, match="got 48 pixels"):
        light_conditional(48, 3, 5, 16)
