"""A world small enough to solve by hand: four classes, each a bright quadrant of an 8x8 image."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mi_audit.core.dataset import Dataset
from mi_audit.core.prior import (
    AssistedPrior,
    ConditionalPrior,
    CriticPrior,
    Painting,
    Prior,
    StylePrior,
    StyleSpace,
    Surrogates,
    TunablePrior,
)
from mi_audit.core.random import Streams
from mi_audit.core.run import Run
from mi_audit.core.target import TorchTarget


def prototypes() -> Tensor:
    images = torch.zeros(4, 3, 8, 8)
    for label in range(4):
        row, column = divmod(label, 2)
        images[label, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1.0
    return images


def classifier() -> nn.Sequential:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    head = net[1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(prototypes().flatten(1) / 12)
        head.bias.zero_()
    return net


def target() -> TorchTarget:
    net = classifier()
    return TorchTarget(net, num_classes=4, head=net[1])


class ToySpace(StyleSpace):
    width = 4
    mean = torch.zeros(4)

    def draw(self, noise: Tensor) -> Tensor:
        return self.project(noise)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.einsum("bk,kchw->bchw", latents.sigmoid(), prototypes())

    def project(self, latents: Tensor) -> Tensor:
        return latents.clamp(-3, 3)


class WatchedSpace(ToySpace):
    """Keeps the latents that it decodes."""

    def __init__(self) -> None:
        self.decoded: list[Tensor] = []

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded.append(latents.detach().clone())
        return super().decode(latents)


class ToyPrior(StylePrior, CriticPrior, ConditionalPrior):
    """A latent with one number per quadrant; the critic likes images of mean brightness one quarter.

    The first of its two blocks adds half the colours and hands one feature per quadrant on; the second adds the rest.
    """

    z = w = ToySpace()
    blocks = 2

    def paint(self, styles: Tensor, painting: Painting | None, blocks: range) -> Painting:
        for block in blocks:
            features = styles.sigmoid()[:, :, None, None] if painting is None else painting.features
            half = torch.einsum("bkij,kchw->bchw", features, prototypes()) / 2
            assert (painting is None) == (block == 0)
            painting = Painting(features, half if painting is None else painting.colours + half)
        assert painting is not None
        return painting

    def show(self, painting: Painting) -> Tensor:
        return painting.colours.clamp(0, 1)

    def realism(self, images: Tensor) -> Tensor:
        return -(images.mean(dim=(1, 2, 3)) - 0.25).square()

    def decode_as(self, latents: Tensor, labels: Tensor) -> Tensor:
        del labels
        return self.z.decode(latents)


def watched(attack: Callable[..., object], **settings: object) -> list[Tensor]:
    """The latents that `attack(run, prior=..., **settings)` decodes, in full batches."""
    prior, space = ToyPrior(), WatchedSpace()
    prior.z = prior.w = space
    attack(Run(batch_size=1000), prior=prior, **settings)
    return space.decoded


class TunableSpace(ToySpace):
    """Each quadrant has a weight that its brightness is multiplied by."""

    def __init__(self) -> None:
        self.weights = nn.Parameter(torch.full((4,), 0.9), requires_grad=False)

    def decode(self, latents: Tensor) -> Tensor:
        return (super().decode(latents) * torch.einsum("k,kchw->chw", self.weights, prototypes())).clamp(0, 1)


class TunableToyPrior(TunablePrior, CriticPrior):
    """The toy generator with weights; the critic is the same."""

    def __init__(self) -> None:
        self.z = TunableSpace()

    @property
    def decoder_weights(self) -> tuple[Tensor, ...]:
        return (self.z.weights,)

    def realism(self, images: Tensor) -> Tensor:
        return ToyPrior.realism(ToyPrior(), images)


def surrogates(*networks: nn.Module) -> Surrogates:
    """The given networks, or one that is half as sure as the target; features are the pixels of the quadrants."""
    with torch.random.fork_rng():
        half = classifier()
    half[1].weight.data.div_(2)
    students = tuple(network.eval().requires_grad_(False) for network in networks or (half,))
    pixels = prototypes().flatten(1)
    return Surrogates(students, pixels.mean(dim=0), pixels.std(dim=0))


def prior_for(attack: type) -> Prior:
    """What the threat model of the attack asks for."""
    knows = attack.threat_model()[1]
    if knows is TunablePrior:
        return TunableToyPrior()
    return AssistedPrior(ToyPrior(), surrogates()) if knows is AssistedPrior else ToyPrior()


def dataset(per_class: int = 6, size: int = 8, seed: int = 0) -> Dataset:
    """Noisy copies of the four quadrants, ordered by class."""
    noise = torch.rand(4 * per_class, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    images = (0.8 * prototypes().repeat_interleave(per_class, 0) + 0.2 * noise).repeat_interleave(size // 8, 2)
    pixels = (images.repeat_interleave(size // 8, 3) * 255).to(torch.uint8)
    labels = torch.arange(4).repeat_interleave(per_class)
    return Dataset(
        "toy",
        pixels,
        labels,
        ("north-west", "north-east", "south-west", "south-east"),
        f"toy-{per_class}-{size}-{seed}",
    )


def public(size: int = 32, channels: int = 3) -> Dataset:
    """Eight images of the four quadrants, for priors to be fitted to."""
    data = dataset(per_class=2, size=size)
    return replace(data, pixels=data.pixels[:, :channels].contiguous())


def streams(rows: int = 3, seed: int = 0) -> Streams:
    """Random streams of the first restart of classes 0, 1, 2, ..."""
    return Streams.of(seed, torch.arange(rows), torch.zeros(rows, dtype=torch.long))
