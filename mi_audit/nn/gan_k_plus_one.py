"""The critic of KEDMI: one logit per class of the target, from features that images of a batch are compared by."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_audit.core.types import Features, Images, Logits
from mi_audit.nn.gan import channel_widths

COMPARED = 63  # the other images of the published batch of 64
WIDEST = 256


class MinibatchDiscrimination(nn.Module):
    """Appends to the features of an image how close they are to those of the other images (Salimans et al., 2016).

    `kernels` projections of `dims` numbers each, `m = features M`; number k is the sum over the other images j of
    `exp(-|m_k - m_jk|_1)`. In training these are the rest of the batch. In eval mode they are images that the critic
    remembers, so that a score belongs to an image and not to its batch.

    Args:
        features: Numbers per image.
        kernels, dims: Shape of the projection.
        spread: Standard deviation of the projection at the start.
    """

    compared: Tensor

    def __init__(self, features: int, kernels: int, dims: int, spread: float) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.randn(features, kernels, dims) * spread)
        self.register_buffer("compared", torch.zeros(COMPARED, kernels, dims))

    def forward(self, features: Features) -> Float[Tensor, "b features_and_kernels"]:
        features = features.float()
        projected = self._project(features)
        others = projected if self.training else self.compared
        distances = (projected[:, None] - others).abs().sum(dim=3)  # b others kernels
        close = (-distances).exp().sum(dim=1)
        return torch.cat([features, close - 1 if self.training else close], dim=1)  # not with itself

    @torch.no_grad()
    def remember(self, features: Features) -> None:
        """Compare with these images from now on when in eval mode; at most 63 of them, repeated when there are less."""
        projected = self._project(features.float())
        self.compared.copy_(projected[torch.arange(COMPARED, device=features.device) % len(projected)])

    def _project(self, features: Features) -> Float[Tensor, "b kernels dims"]:
        return torch.einsum("bf,fkd->bkd", features, self.projection)


class KPlusOneCritic(nn.Module):
    """Features of images, and one logit per class from them and from their comparison with other images."""

    def __init__(self, body: nn.Sequential, comparison: MinibatchDiscrimination, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.comparison, self.head = body, comparison, head

    def forward(self, images: Images) -> tuple[Features, Logits]:
        features = self.body(images)
        return features, self.head(self.comparison(features))

    @torch.no_grad()
    def remember(self, images: Images) -> None:
        """Compare with these images from now on when in eval mode."""
        self.comparison.remember(self.body(images))


def published_critic(size: int, channels: int, classes: int) -> KPlusOneCritic:
    """The critic of KEDMI's code at 64 pixels; one stage more or less at other sizes.

    Raises:
        ConfigError: No such network for that size or number of channels.
    """
    narrow = [min(WIDEST, width) for width in reversed(channel_widths(size, channels, 64)[1:])]
    layers: list[nn.Module] = []
    for before, after in pairwise([channels, *narrow]):
        layers += [nn.Conv2d(before, after, 5, 2, 2), nn.InstanceNorm2d(after, affine=True), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(narrow[-1], narrow[-1], 3, 2, 1), nn.InstanceNorm2d(narrow[-1], affine=True)]
    body = nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Flatten())
    features = narrow[-1] * 16
    return KPlusOneCritic(body, MinibatchDiscrimination(features, 64, 50, 1.0), nn.Linear(features + 64, classes))


def light_critic(size: int, channels: int, classes: int, width: int) -> KPlusOneCritic:
    """A critic that two cores can train: 4x4 kernels, no normalisation, a comparison that starts within its range.

    Raises:
        ConfigError: No such network for that size or number of channels.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise([channels, *reversed(channel_widths(size, channels, width))]):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    features = channel_widths(size, channels, width)[0] * 16
    comparison = MinibatchDiscrimination(features, 32, 8, 0.5 / features**0.5)
    return KPlusOneCritic(nn.Sequential(*layers, nn.Flatten()), comparison, nn.Linear(features + 32, classes))
