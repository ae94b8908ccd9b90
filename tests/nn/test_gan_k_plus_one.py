import math

import pytest
import torch
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.nn.gan_k_plus_one import MinibatchDiscrimination, light_critic, published_critic

SHAPES = [(size, channels) for size in (32, 64, 128) for channels in (1, 3)]


@pytest.mark.parametrize("make", [published_critic, lambda *shape: light_critic(*shape, 16)])
@pytest.mark.parametrize(("size", "channels"), SHAPES)
def test_critics_return_features_and_one_logit_per_class(make, size, channels):
    with torch.no_grad():
        features, logits = make(size, channels, 5)(torch.rand(2, channels, size, size))
    assert features.ndim == 2 and logits.shape == (2, 5)
    assert features.std() > 0


def test_the_published_critic_at_64_pixels_has_the_published_layers():
    critic = published_critic(64, 3, 1000)
    layers = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in critic.body if isinstance(m, nn.Conv2d)]
    assert layers == [(3, 64, 5), (64, 128, 5), (128, 256, 5), (256, 256, 3)]
    assert sum(isinstance(m, nn.InstanceNorm2d) and m.affine for m in critic.body) == 4
    assert critic.comparison.projection.shape == (4096, 64, 50)
    assert critic.head.weight.shape == (1000, 4160)


def comparison():
    module = MinibatchDiscrimination(2, 1, 2, 1.0)
    with torch.no_grad():
        module.projection.copy_(torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]))
    return module


FEATURES = torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.0, 1.0]])  # projected (0, 0), (1, 1), (0, 2): all two apart


def test_images_of_a_batch_are_compared_by_hand():
    compared = comparison()(FEATURES)
    torch.testing.assert_close(compared[:, :2], FEATURES)
    torch.testing.assert_close(compared[:, 2], torch.full((3,), 2 * math.exp(-2)))


def test_a_score_outside_training_belongs_to_the_image():
    module = comparison().eval()
    module.remember(FEATURES[:1])  # 63 times the same
    compared = module(FEATURES)
    torch.testing.assert_close(compared[:, 2], 63 * torch.tensor([1, math.exp(-2), math.exp(-2)]))
    torch.testing.assert_close(module(FEATURES[1:2]), compared[1:2])


def test_a_light_comparison_starts_within_its_range():
    critic = light_critic(32, 1, 5, 32)
    features, _ = critic(torch.rand(64, 1, 32, 32))
    close = critic.comparison(features)[:, features.shape[1] :]
    assert 0.1 < close.mean() < 62  # neither all apart nor all alike


def test_other_sizes_are_refused():
    with pytest.raises(ConfigError, match="got 48 pixels"):
        published_critic(48, 3, 5)
