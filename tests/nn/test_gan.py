import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.nn.gan import MinibatchStdDev, light, published

SHAPES = [(size, channels) for size in (32, 64, 128) for channels in (1, 3)]


@pytest.mark.parametrize("make", [light, published])
@pytest.mark.parametrize(("size", "channels"), SHAPES)
def test_generators_make_images_and_critics_one_score_each(make, size, channels):
    generator, critic, latent, _ = make(size, channels)
    with torch.no_grad():
        images = generator(torch.randn(2, latent))
        scores = critic(images)
    assert images.shape == (2, channels, size, size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0
    assert scores.shape == (2,)


def test_published_networks_at_64_pixels_have_the_published_layers():
    generator, critic, latent, _ = published(64, 3)
    assert latent == 100
    up = [(m.in_channels, m.out_channels, m.kernel_size) for m in generator if isinstance(m, nn.ConvTranspose2d)]
    assert up == [(512, 256, (5, 5)), (256, 128, (5, 5)), (128, 64, (5, 5)), (64, 3, (5, 5))]
    assert generator[0].weight.shape == (8192, 100)
    down = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in critic if isinstance(m, nn.Conv2d)]
    assert down == [(3, 64, 5), (64, 128, 5), (128, 256, 5), (256, 512, 5), (512, 1, 4)]
    assert [m.num_features for m in critic if isinstance(m, nn.InstanceNorm2d)] == [128, 256, 512]


def test_published_weights_start_small():
    critic = published(64, 3).critic
    assert critic[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert critic[2].bias.abs().max() == 0


def test_the_light_critic_keeps_the_variance_of_its_input_at_the_start():
    critic = light(64, 3).critic
    trunk = critic[:8]  # the convolutions before the images are compared
    with torch.no_grad():
        power = trunk(torch.randn(8, 3, 64, 64)).square().mean()
    assert 0.4 < power < 2.5


def test_light_networks_at_64_pixels_have_the_measured_widths():
    generator, critic, latent, _ = light(64, 3)
    assert latent == 128
    assert [m.out_channels for m in generator if isinstance(m, nn.ConvTranspose2d)] == [384, 192, 96, 48, 3]
    assert [m.out_channels for m in critic if isinstance(m, nn.Conv2d)] == [48, 96, 192, 384, 256]


@pytest.mark.parametrize(("size", "channels"), [(48, 3), (256, 3), (16, 1), (64, 2)])
@pytest.mark.parametrize("make", [light, published])
def test_other_images_are_refused(make, size, channels):
    with pytest.raises(ConfigError, match=f"expected public images of 32, 64 or 128 pixels.*got {size} pixels"):
        make(size, channels)


def test_minibatch_deviation_by_hand():
    maps = torch.tensor([1.0, 3.0, 5.0, 7.0])[:, None, None, None].expand(4, 2, 3, 3)
    out = MinibatchStdDev()(maps)
    assert out.shape == (4, 3, 3, 3)
    assert torch.equal(out[:, :2], maps)
    torch.testing.assert_close(out[:, 2], torch.full((4, 3, 3), 5.0**0.5))


def test_minibatch_deviation_compares_groups_of_four():
    maps = torch.zeros(8, 1, 1, 1)
    maps[0], maps[2] = 4.0, -4.0  # images 0, 2, 4, 6 form the first group
    appended = MinibatchStdDev()(maps)[:, 1].flatten()
    torch.testing.assert_close(appended, torch.tensor([8.0**0.5, 1e-4] * 4))


def test_minibatch_deviation_in_eval_mode_is_the_running_mean():
    layer = MinibatchStdDev(momentum=0.5)
    maps = torch.tensor([0.0, 2.0])[:, None, None, None]
    layer(maps)
    layer(3 * maps)
    torch.testing.assert_close(layer.eval()(maps)[:, 1].flatten(), torch.full((2,), 0.5 * 0.5 + 0.5 * 3.0))


@given(st.integers(1, 5))
def test_scores_in_eval_mode_do_not_depend_on_the_batch(count):
    critic = _critic()
    images = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(count))
    torch.testing.assert_close(critic(images)[:count], critic(images[:count]))


def _critic():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = light(32, 1, width=4).critic
    critic(torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1)))
    return critic.eval().requires_grad_(False)
