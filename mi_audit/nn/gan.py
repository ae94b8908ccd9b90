"""Generators and critics for square images of 32, 64 or 128 pixels, grey or RGB, in [0, 1]."""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_audit.core.errors import ConfigError
from mi_audit.nn.frozen import frozen

SIZES = (32, 64, 128)
WIDEST = 512  # channels of the published networks at 4x4; larger images add layers, not wider ones


class Networks(NamedTuple):
    """A generator of `latent` standard normal numbers, and its critic: images to one score each.

    With `classes` above 0, both take the label of each image as their second input.
    """

    generator: nn.Module
    critic: nn.Module
    latent: int
    classes: int = 0


class MinibatchStdDev(nn.Module):
    """Appends one channel: how much the images of a group of four differ, so that the critic sees missing variety.

    Karras et al., "Progressive Growing of GANs", ICLR 2018, section 3. In eval mode the running mean of that number
    takes its place, so that a score belongs to an image and not to its batch.
    """

    average: Tensor

    def __init__(self, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("average", torch.zeros(()))

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c+1 h w"]:
        variety = self._variety(maps) if self.training else self.average.expand(len(maps))
        return torch.cat([maps, variety.to(maps.dtype)[:, None, None, None].expand(-1, 1, *maps.shape[2:])], dim=1)

    def _variety(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        group = next(size for size in (4, 3, 2, 1) if len(maps) % size == 0)
        members = maps.float().unflatten(0, (group, -1))
        variance = (members - members.mean(dim=0)).square().mean(dim=0)  # `var` over a short first axis is slow
        spread = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))  # groups
        self.average.lerp_(spread.detach().mean(), self.momentum)
        return spread.repeat(group)


def published(size: int, channels: int) -> Networks:
    """The networks of GMI (Zhang et al., CVPR 2020) at 64 pixels; one stage more or less at other sizes.

    Raises:
        ConfigError: No such network for that size or number of channels.
    """
    widths = channel_widths(size, channels, 64)
    up: list[nn.Module] = [nn.Linear(100, widths[0] * 16, bias=False), nn.BatchNorm1d(widths[0] * 16), nn.ReLU()]
    up.append(nn.Unflatten(1, (widths[0], 4, 4)))
    for wide, narrow in pairwise(widths):
        up += [nn.ConvTranspose2d(wide, narrow, 5, 2, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
    up += [nn.ConvTranspose2d(widths[-1], channels, 5, 2, 2, 1), nn.Sigmoid()]

    down: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 5, 2, 2), nn.LeakyReLU(0.2)]
    for narrow, wide in pairwise(reversed(widths)):
        down += [nn.Conv2d(narrow, wide, 5, 2, 2), nn.InstanceNorm2d(wide, affine=True), nn.LeakyReLU(0.2)]
    down += [nn.Conv2d(widths[0], 1, 4), nn.Flatten(0)]
    return Networks(_start(nn.Sequential(*up)), _start(nn.Sequential(*down)), 100)


def light(size: int, channels: int, width: int = 48) -> Networks:
    """Networks that two cores can train: 4x4 kernels, a critic without normalisation that compares images.

    Args:
        size: Of the images, in pixels.
        channels: Of the images.
        width: Channels at half the image size; they double towards 4x4.

    Raises:
        ConfigError: No such network for that size or number of channels.
    """
    widths = channel_widths(size, channels, width)
    up: list[nn.Module] = [nn.Unflatten(1, (128, 1, 1)), nn.ConvTranspose2d(128, widths[0], 4, bias=False)]
    for wide, narrow in pairwise(widths):
        up += [nn.BatchNorm2d(wide), nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)]
    up += [nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1), nn.Sigmoid()]

    down: list[nn.Module] = []
    for narrow, wide in pairwise([channels, *reversed(widths)]):
        down += [nn.Conv2d(narrow, wide, 4, 2, 1), nn.LeakyReLU(0.2)]
    down += [MinibatchStdDev(), nn.Conv2d(widths[0] + 1, 256, 3, padding=1), nn.LeakyReLU(0.2)]
    down += [nn.Flatten(), nn.Linear(256 * 16, 1), nn.Flatten(0)]
    return Networks(_start(nn.Sequential(*up)), _start_unnormalised(nn.Sequential(*down)), 128)


def quick_steps(size: int) -> int:
    """Critic updates of the light profile, enough for images of `size` pixels."""
    return 800 if size <= 32 else 4600


def packed(**networks: nn.Module) -> dict[str, Tensor]:
    """The weights of named networks in one table, on the CPU."""
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, network in networks.items()
        for name, tensor in network.state_dict().items()
    }


def unpack(weights: Mapping[str, Tensor], device: str, **networks: nn.Module) -> None:
    """Load named networks from a table of `packed`; they are frozen, in eval mode and on `device` from here on."""
    for part, network in networks.items():
        prefix = f"{part}."
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        network.load_state_dict(own)
        network.to(device).eval().requires_grad_(False)


def hastened(networks: Networks, *, critic: bool = True) -> Networks:
    """Frozen copies of networks that were unpacked, which take less time; checked on standard normal latents.

    Args:
        networks: In eval mode.
        critic: Whether the critic is used, too.
    """
    device = next(networks.generator.parameters()).device
    latents = torch.randn(2, networks.latent, generator=torch.Generator().manual_seed(0)).to(device)
    labels = (torch.zeros(2, dtype=torch.long, device=device),) if networks.classes else ()
    generator = frozen(networks.generator, latents, *labels)
    if not critic:
        return networks._replace(generator=generator)
    with torch.no_grad():
        images = generator(latents, *labels)
    return networks._replace(generator=generator, critic=frozen(networks.critic, images, *labels))


def count_weights(network: nn.Module) -> int:
    """Trainable numbers of a network."""
    return sum(weight.numel() for weight in network.parameters())


def channel_widths(size: int, channels: int, width: int) -> list[int]:
    """Channels of the maps of 4x4, 8x8, ..., half the image size."""
    if size not in SIZES or channels not in (1, 3):
        raise ConfigError(
            f"expected public images of 32, 64 or 128 pixels with 1 or 3 channels, got {size} pixels and {channels} "
            "channels; set the image size (--size 64)"
        )
    return [min(WIDEST, width << stage) for stage in reversed(range(size.bit_length() - 3))]


def _start(net: nn.Sequential) -> nn.Sequential:
    """The start of Radford et al. (DCGAN, ICLR 2016): weights N(0, 0.02), scales N(1, 0.02), biases 0."""
    for module in net:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)
    return net


def _start_unnormalised(net: nn.Sequential) -> nn.Sequential:
    """He's start, which keeps the variance of a network that has no normalisation."""
    for module in net:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.2)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return net
