"""Small worlds to attack: a generator, a classifier that learned what some of its latents look like, and a judge.

Nothing is downloaded: the generator has random weights, calibrated batch norms and some contrast, and the private
images of a class are what it makes around a centre of that class. So the private images are within the reach of the
prior, the classifier has something to learn, and an attack has somewhere to go. What is trained is kept in the cache.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.core.dataset import Dataset
from mi_audit.nn.architectures import built_in
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.gan import published
from mi_audit.nn.gan_conditional import ConditionalBatchNorm, published_conditional
from mi_audit.nn.gan_k_plus_one import published_critic
from mi_audit.nn.stylegan2 import Generator, Shape
from mi_audit.store.architectures import build
from mi_audit.store.cache import Cache
from mi_audit.store.files import digest
from mi_audit.train.classifier import fit
from mi_audit.train.recipe import Recipe
from mi_audit.train.seeding import seeded

VERSION = 4  # raised whenever the same settings would give other weights
CHUNK = 16
RANK = 8  # directions of the latent space that images depend on; with more, attacks find adversarial noise only
NOISE = 0.4  # within a class, as a share of the deviation of the prior


@dataclass(frozen=True, kw_only=True)
class World:
    """What to attack.

    Attributes:
        prior: Kind of generator: GMI's and KEDMI's, PLG-MI's conditional one, or StyleGAN2.
        size: Side of the generated images in pixels.
        target: `resnet18` or a built-in network such as `vgg16-bn-small`.
        fed: Side of what the target is fed.
        width: Of StyleGAN2: channels times side, at most 512 channels.
        classes: Of the target.
        images: To learn from, per class; 0 leaves the target as it was drawn, with calibrated batch norms.
        epochs: Over these images.
        students: Networks distilled from the target.
        judged: Whether an evaluator learns, too.
    """

    prior: Literal["gan", "conditional", "style"]
    size: int
    target: str
    fed: int
    width: int = 16384
    classes: int
    images: int
    epochs: int = 2
    students: tuple[str, ...] = ()
    judged: bool = True


@dataclass(frozen=True, eq=False)
class Built:
    """The networks of a world, in eval mode, on the CPU; copy before use.

    Attributes:
        width: Normal numbers that a latent is made of.
        accuracy: Of target and evaluator on images that they did not learn from; None when nothing was learned.
    """

    world: World
    generator: nn.Module
    critic: nn.Module | None
    k_plus_one: nn.Module | None
    target: Classifier
    evaluator: Classifier
    students: tuple[Classifier, ...]
    feature_mean: Tensor
    width: int
    accuracy: list[float] | None


def build_world(world: World, root: Path | None = None, say: Callable[[str], object] = len) -> Built:
    """The networks, from the cache when they are there."""
    with seeded("cpu", 0, "benchmark", world.prior, world.size):
        networks = _networks(world)
        generator, width = networks.generator.eval(), networks.latent
        _calibrate(generator, width, world)
        critic = networks.critic.eval() if networks.critic is not None else None
        k_plus_one = published_critic(world.size, 3, world.classes).eval() if world.prior == "gan" else None
        target = _classifier(world.target, world)
        evaluator = Classifier(
            built_in("cnn-wide", world.classes, 3), size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3
        ).eval()
        students = tuple(_student(name, world) for name in world.students)
        parts = nn.ModuleDict({"target": target, "evaluator": evaluator})
        base = replace(world, students=())
        facts = _kept(base, parts, root, say, lambda key: _train(base, generator, width, parts, key))
        pupils = nn.ModuleList(students)
        if students:
            _kept(world, pupils, root, say, lambda key: _teach(world, generator, width, target, pupils, key))
        if k_plus_one is not None:
            k_plus_one.remember(_private(world, generator, width, torch.arange(64) % world.classes, "remembered"))
    return Built(
        world, generator, critic, k_plus_one, target, evaluator, students, facts["features"], width, facts["accuracy"]
    )


class _Drawn:
    """A generator and a critic as they were drawn."""

    def __init__(self, generator: nn.Module, critic: nn.Module | None, latent: int) -> None:
        self.generator, self.critic, self.latent = generator, critic, latent


def _networks(world: World) -> _Drawn:
    if world.prior == "gan":
        nets = published(world.size, 3)
        _narrow(nets.generator[0])
        nets.generator[-2].weight.data.mul_(8)  # for contrast
        return _Drawn(nets.generator, nets.critic, nets.latent)
    if world.prior == "conditional":
        generator = published_conditional(world.size, 3, world.classes).generator
        for layer in generator.modules():
            if isinstance(layer, ConditionalBatchNorm):
                nn.init.normal_(layer.scale, 1.0, 0.1)
                nn.init.normal_(layer.shift, 0.0, 0.1)
        _narrow(generator.start[0])
        generator.end[-2].weight.data.mul_(8)
        return _Drawn(generator, None, 128)
    generator = Generator(Shape.tapering(world.size, 3, world.width, depth=2))
    _narrow(generator.mapping.layers[0])
    for block in generator.blocks:
        block.colour.weight.data.mul_(0.3)
    return _Drawn(generator, None, 512)


def _narrow(layer: nn.Module) -> None:
    """Let the outputs depend on a few directions of the inputs."""
    few = torch.linalg.qr(torch.randn(layer.weight.shape[1], RANK)).Q
    layer.weight.data = layer.weight.data @ few @ few.T * (len(few) / RANK) ** 0.5


def _classifier(name: str, world: World) -> Classifier:
    if name == "resnet18":
        net = torchvision.models.resnet18(num_classes=world.classes)
    else:
        net = built_in(name, world.classes, 3)
    return Classifier(net, size=world.fed, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3).eval()


def _student(name: str, world: World) -> Classifier:
    """As the students of the package are: pixels go in as they are."""
    net = build(name, num_classes=world.classes, channels=3, size=world.size, kwargs={})
    return Classifier(net, size=world.size, channels=3, mean=(0.0,), std=(1.0,)).eval()


@torch.no_grad()
def _calibrate(generator: nn.Module, width: int, world: World) -> None:
    """Give the batch norms the statistics of the images that the generator makes, and StyleGAN2 its average style."""
    z = torch.randn(64, width)
    if isinstance(generator, Generator):
        generator.mapping.average.copy_(generator.mapping(torch.randn(1000, width)).mean(dim=0))
        return
    _measured(generator)
    generator.train()
    more = () if world.prior == "gan" else (torch.arange(64) % world.classes,)
    generator(z, *more)
    generator.eval()


def _measured(net: nn.Module) -> None:
    """Let one pass in training mode fix the batch norms."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = None
            layer.reset_running_stats()


@torch.no_grad()
def _private(world: World, generator: nn.Module, width: int, labels: Tensor, name: str) -> Tensor:
    """Images of the classes `labels`: what the generator makes of the centre of the class and some noise."""
    with seeded("cpu", 0, "centres"):
        centres = torch.randn(world.classes, width).clamp(-1, 1)
    with seeded("cpu", 0, name):
        z = centres[labels] + NOISE * torch.randn(len(labels), width)
    images = []
    for part, own in zip(z.split(CHUNK), labels.split(CHUNK), strict=True):
        if isinstance(generator, Generator):
            styles = generator.mapping.average.lerp(generator.mapping(part), 0.5)
            painted = generator.paint(generator.layered(styles)).colours
            images.append((painted * 0.5 + 0.5).clamp(0, 1))
        else:
            images.append(generator(part) if world.prior == "gan" else generator(part, own))
    return torch.cat(images)


def _kept(
    world: World,
    parts: nn.Module,
    root: Path | None,
    say: Callable[[str], object],
    train: Callable[[str], dict[str, Any]],
) -> dict[str, Any]:
    """Train `parts` in place, or load what an earlier call trained; what `train` says about it."""
    key = digest("benchmark", VERSION, asdict(world))
    file = Cache(root).folder("benchmarks", key[:24]) / "networks.pt"
    if not file.is_file():
        say(f"training the networks of {world}")
        facts = train(key)
        torch.save({"weights": parts.state_dict(), "facts": facts}, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    kept = torch.load(file, weights_only=True)
    parts.load_state_dict(kept["weights"])
    parts.cpu().eval()
    return kept["facts"]


def _train(world: World, generator: nn.Module, width: int, parts: nn.ModuleDict, key: str) -> dict[str, Any]:
    """Let target and evaluator learn the private images, or only meet them when there are none to learn from."""
    if not world.images:
        images = _meet(world, generator, width, parts.values())
        return {"features": _features(parts["target"], images), "accuracy": None}
    data = _data(world, generator, width, key)
    _fit(parts["target"], data, world.epochs, lr=0.01)
    if world.judged:
        _fit(parts["evaluator"], data, 5 * world.epochs, lr=0.05)
    held = torch.arange(world.classes).repeat(8)
    images = _private(world, generator, width, held, "test")
    with torch.no_grad():
        accuracy = [float((parts[name](images).argmax(1) == held).float().mean()) for name in ("target", "evaluator")]
    return {"features": _features(parts["target"], data.images(slice(0, 64))), "accuracy": accuracy}


def _teach(
    world: World, generator: nn.Module, width: int, target: Classifier, students: nn.ModuleList, key: str
) -> dict[str, Any]:
    """Distil the target into the students, or only let them meet images when there are none to learn from."""
    if not world.images:
        _meet(world, generator, width, students)
        return {}
    data = _data(world, generator, width, key)
    with torch.no_grad():
        answers = torch.cat([target(part) for part in data.images().split(64)]).log_softmax(1)

    def distil(model: nn.Module, images: Tensor, rows: Tensor) -> Tensor:
        return F.kl_div(model(images).float().log_softmax(1), answers[rows], reduction="batchmean", log_target=True)

    numbered = replace(data, labels=torch.arange(len(data)))
    for student in students:
        _fit(student, numbered, 1, lr=0.01, loss=distil)
    return {}


@torch.no_grad()
def _meet(world: World, generator: nn.Module, width: int, networks: Iterable[nn.Module]) -> Tensor:
    """Images that the batch norms of `networks` take their statistics from."""
    images = _private(world, generator, width, torch.arange(8) % world.classes, "calibrate")
    for network in networks:
        _measured(network)
        network.train()(images)
        network.eval()
    return images


def _data(world: World, generator: nn.Module, width: int, key: str) -> Dataset:
    labels = torch.arange(world.classes).repeat(world.images)
    pixels = (_private(world, generator, width, labels, "train") * 255).to(torch.uint8)
    return Dataset("benchmark", pixels, labels, tuple(str(label) for label in range(world.classes)), key)


def _fit(model: nn.Module, data: Dataset, epochs: int, lr: float, **how: Any) -> None:
    recipe = Recipe(epochs=epochs, batch_size=32, lr=lr)
    fit(model, data, data.select(torch.arange(0)), recipe, seed=0, device="cpu", on_step=lambda *_: None, **how)
    model.eval()


@torch.no_grad()
def _features(target: Classifier, images: Tensor) -> Tensor:
    caught: list[Tensor] = []
    handle = target.head.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0].flatten(1)))
    target(images)
    handle.remove()
    return caught[0].mean(dim=0)


def own(module: nn.Module, device: str) -> nn.Module:
    """A copy on `device` that requires gradients, as published loops leave their networks."""
    return copy.deepcopy(module).to(device).requires_grad_(True)
