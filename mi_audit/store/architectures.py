"""From the name of an architecture to a network, and from the shapes of weights to what the network must look like."""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from mi_audit.core.errors import TargetError
from mi_audit.nn.architectures import NETWORKS, built_in
from mi_audit.store.manifest import Declared

GRAMMAR = "timm:NAME, torchvision:NAME, built-in:NAME or py:module:factory"
PROBE = 1009  # a number of classes that is no other dimension of any network, so that the head shows
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
POSITIONS = ("pos_embed", "encoder.pos_embedding")  # of vision transformers in timm and torchvision

Shapes = Mapping[str, tuple[int, ...]]


def complete_name(arch: str, origin: str) -> str:
    """The name with its family; timm writes bare names into its files, torchvision's are understood too.

    Raises:
        TargetError: No family knows the name.
    """
    family, colon, name = arch.partition(":")
    if colon and family in ("timm", "torchvision", "built-in", "py"):
        known = {
            "timm": timm.is_model,
            "torchvision": _torchvision_names().__contains__,
            "built-in": NETWORKS.__contains__,
        }
        if family == "py" or known[family](name):
            return arch
    elif not colon and timm.is_model(arch):
        return f"timm:{arch}"
    elif not colon and arch in _torchvision_names():
        return f"torchvision:{arch}"
    raise TargetError(f"expected an architecture such as {GRAMMAR}, got {arch!r} ({origin}); correct --arch")


def build(arch: str, *, num_classes: int, channels: int, size: int | None, kwargs: Mapping[str, object]) -> nn.Module:
    """A network with fresh weights from the global generator; `arch` is a complete name.

    Raises:
        TargetError: The factory does not exist or refuses the arguments.
    """
    family, _, name = arch.partition(":")
    try:
        if family == "timm":
            return _timm(name, num_classes, channels, size, dict(kwargs))
        if family == "torchvision":
            return _torchvision(name, num_classes, channels, size, dict(kwargs))
        if family == "built-in":
            if kwargs:
                raise TypeError(f"built-in networks take no {', '.join(kwargs)}")
            return built_in(name, num_classes, channels)
        return _own(name, num_classes, dict(kwargs))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TargetError(
            f"expected {arch} to be built, got the error '{reason}'; correct --arch or "
            "--set model.model_kwargs.NAME=VALUE"
        ) from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed` and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def defaults(arch: str) -> Declared:
    """What the family publishes for the architecture: input size and normalisation."""
    family, _, name = arch.partition(":")
    if family == "timm" and (published := timm.get_pretrained_cfg(name)) is not None:
        shape = published.input_size
        return Declared.of("timm default", size=shape[-1], channels=shape[0], mean=published.mean, std=published.std)
    if family in ("timm", "torchvision"):
        size = _torchvision_size(name) if family == "torchvision" else 224
        return Declared.of(f"{family} default", size=size, channels=3, mean=IMAGENET[0], std=IMAGENET[1])
    if family == "built-in":
        size = 32 if name.startswith("cnn") else 64
        return Declared.of("built-in default", size=size, channels=3, mean=(0.5,), std=(0.5,))
    return Declared.of("default: no normalisation", mean=(0.0,), std=(1.0,))


def read_shapes(arch: str, shapes: Shapes, kwargs: Mapping[str, object]) -> Declared:
    """Number of classes, channels and (for vision transformers) input size that the weights were made for."""
    reference = _reference(arch, kwargs)
    head = next((name for name, shape in reference.items() if shape[:1] == (PROBE,) and name in shapes), None)
    stem = _stem(reference)
    return Declared.of(
        "tensor shapes",
        num_classes=shapes[head][0] if head and shapes[head] else None,
        channels=shapes[stem][1] if stem and len(shapes.get(stem, ())) == 4 else None,
        size=_transformer_size(arch, reference, shapes),
    )


def fits(arch: str, shapes: Shapes) -> bool:
    """Whether weights of these shapes are those of `arch`, for any number of classes, channels and positions."""
    reference = _reference(arch, {})
    if _counted(reference) != _counted(shapes):
        return False
    stem = _stem(reference)
    return all(_agree(name, shape, shapes[name], stem) for name, shape in reference.items() if name in shapes)


def load_strictly(net: nn.Module, tensors: Mapping[str, Tensor], arch: str, source: object) -> None:
    """Copy `tensors` into `net`.

    Raises:
        TargetError: As `check_fit`.
    """
    net.load_state_dict(check_fit(net, tensors, arch, source), strict=True)


def check_fit(net: nn.Module, tensors: Mapping[str, Tensor], arch: str, source: object) -> Mapping[str, Tensor]:
    """`tensors` completed for `net`, which may be without memory, on the device `meta`; nothing is copied.

    Raises:
        TargetError: A tensor is missing, left over or of another shape; the message lists at most five of each.
    """
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    counters = {name: torch.tensor(0) for name in wanted if name.endswith("num_batches_tracked")}
    tensors = {**counters, **tensors}  # old checkpoints lack these, and no result depends on them
    problems = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {shape}"
            for name, shape in wanted.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
    }
    found = "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for kind, names in problems.items()
        if names
    )
    if found:
        raise TargetError(
            f"expected the weights of {arch}, got {source} with {found}; correct --arch, --num-classes or --input-size"
        )
    return tensors


def _timm(name: str, num_classes: int, channels: int, size: int | None, kwargs: dict[str, Any]) -> nn.Module:
    arguments = {"num_classes": num_classes, "in_chans": channels, **kwargs}
    if size is not None:
        try:
            return timm.create_model(name, pretrained=False, img_size=size, **arguments)
        except TypeError:  # convolutional networks have no such argument
            pass
    return timm.create_model(name, pretrained=False, **arguments)


def _torchvision(name: str, num_classes: int, channels: int, size: int | None, kwargs: dict[str, object]) -> nn.Module:
    if name.startswith("vit_") and size is not None:
        kwargs = {"image_size": size, **kwargs}
    net = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **kwargs)
    if channels != 3:
        _widen_stem(net, channels)
    return net


def _widen_stem(net: nn.Module, channels: int) -> None:
    """Make the first convolution take `channels`; the factories of torchvision have no argument for it."""
    stem = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    stem.in_channels = channels
    stem.weight = nn.Parameter(torch.empty(stem.out_channels, channels, *stem.kernel_size))
    stem.reset_parameters()


def _own(name: str, num_classes: int, kwargs: dict[str, object]) -> nn.Module:
    module, _, factory = name.partition(":")
    made = _factory(module, factory)
    if "num_classes" in inspect.signature(made).parameters:
        kwargs.setdefault("num_classes", num_classes)
    net = made(**kwargs)
    if not isinstance(net, nn.Module):
        raise TargetError(
            f"expected py:{name} to return a torch.nn.Module, got {type(net).__name__}; correct the factory"
        )
    return net


def _factory(module: str, factory: str) -> Callable[..., object]:
    here = str(Path.cwd())
    # A console script does not see the folder it is called from; the user named a module there on purpose.
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), factory, None)
    except ImportError as error:
        raise TargetError(
            f"expected a module {module} in {here} or installed, got '{error}'; correct --arch py:module:factory"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise TargetError(f"expected a function {factory!r} in {module}, got none; correct --arch py:module:factory")
    return found


@lru_cache(maxsize=1)
def _torchvision_names() -> frozenset[str]:
    return frozenset(torchvision.models.list_models(module=torchvision.models))


def _torchvision_size(name: str) -> int:
    crop = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size
    return crop[0] if isinstance(crop, list | tuple) else crop


def _reference(arch: str, kwargs: Mapping[str, object]) -> Shapes:
    """Shapes of the network for `PROBE` classes and three channels, in registration order."""
    return _own_shapes(arch, kwargs) if arch.startswith("py:") or kwargs else _published_shapes(arch)


def _own_shapes(arch: str, kwargs: Mapping[str, object]) -> Shapes:
    with seeded(0):
        net = build(arch, num_classes=PROBE, channels=3, size=None, kwargs=kwargs)
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


@lru_cache(maxsize=128)
def _published_shapes(arch: str) -> Shapes:
    try:
        with torch.device("meta"):
            net = build(arch, num_classes=PROBE, channels=3, size=None, kwargs={})
    except NotImplementedError:  # some networks of torchvision compute numbers while they are built
        return _own_shapes(arch, {})
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def _stem(shapes: Shapes) -> str | None:
    return next((name for name, shape in shapes.items() if len(shape) == 4), None)


def _counted(shapes: Shapes) -> set[str]:
    return {name for name in shapes if not name.endswith("num_batches_tracked")}


def _agree(name: str, reference: tuple[int, ...], given: tuple[int, ...], stem: str | None) -> bool:
    if reference[:1] == (PROBE,):
        return reference[1:] == given[1:] and len(given) == len(reference)
    if name == stem and len(given) == 4:
        return (reference[0], *reference[2:]) == (given[0], *given[2:])
    if name in POSITIONS:
        return reference[-1:] == given[-1:]
    return reference == given


def _transformer_size(arch: str, reference: Shapes, shapes: Shapes) -> int | None:
    name = next((name for name in POSITIONS if name in reference and len(shapes.get(name, ())) == 3), None)
    stem = _stem(reference)
    published = defaults(arch).size
    if name is None or stem is None or published is None:
        return None
    patch = reference[stem][-1]
    extra = reference[name][1] - (published // patch) ** 2  # class and register tokens
    return patch * math.isqrt(shapes[name][1] - extra)
