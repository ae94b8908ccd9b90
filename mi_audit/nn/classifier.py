"""A network with everything between a picture and its logits: resize, channels, normalisation, output order."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from mi_audit.core.errors import TargetError
from mi_audit.core.types import Features, Images, Logits
from mi_audit.nn.constants import beside
from mi_audit.nn.frozen import frozen
from mi_audit.nn.modes import evaluating

LARGEST = 2048  # pixels a side; published classifiers are fed up to about half of it
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights Pillow uses


class Head(nn.Module, ABC):
    """Takes the place of a last layer (`nn.heads`) and maps features to logits.

    Where it replaced a 1x1 convolution, both have the positions `1 1` behind them.
    """

    def forward(self, features: Float[Tensor, "b d *ones"]) -> Float[Tensor, "b k *ones"]:
        logits = self.logits(features.flatten(1))
        return logits.view(*logits.shape, *features.shape[2:])

    @abstractmethod
    def logits(self, features: Features) -> Logits: ...


class Classifier(nn.Module):
    """Maps images in [0, 1] of any size, grey or RGB, to logits in the order of the data's classes.

    Args:
        net: The network proper; its state dict is what gets saved.
        size: Height = width in pixels that `net` is fed; other sizes are resized, bilinear with antialiasing.
        channels: Channels that `net` is fed; grey is repeated, RGB becomes luminance.
        mean, std: Normalisation per channel after scaling to [0, 1]; one number serves all channels.
        order: Output of `net` for each class of the data; None is the identity.
        logits_index: Position of the logits when `net` returns a tuple, such as 0 or -1.

    Raises:
        TargetError: `net` does not accept such images or does not return one row of logits per image; `size` is not
            from 1 to 2048.
    """

    mean: Float[Tensor, "1 c 1 1"]
    std: Float[Tensor, "1 c 1 1"]

    def __init__(
        self,
        net: nn.Module,
        *,
        size: int,
        channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        order: tuple[int, ...] | None = None,
        logits_index: int | None = None,
    ) -> None:
        super().__init__()
        check_size(size)
        self.net, self.size, self.channels = net, size, channels
        self.order, self.logits_index = order, logits_index
        self.mean_values, self.std_values = tuple(mean), tuple(std)
        self.register_buffer("mean", _per_channel("mean", mean, channels), persistent=False)
        self.register_buffer("std", _per_channel("std", std, channels), persistent=False)
        if not all(value > 0 for value in std):
            raise TargetError(f"expected a positive standard deviation per channel, got {std}; correct --std")
        self.head_name, self.num_classes = self._trace()
        if order is not None and sorted(order) != list(range(self.num_classes)):
            raise TargetError(f"expected an order of {self.num_classes} outputs, got {order}; correct the sidecar json")

    def forward(self, images: Images) -> Logits:
        """Logits, differentiable in `images`."""
        logits = self._pick(self.net(self.prepare(images)))
        return logits if self.order is None else logits[:, self.order]

    def prepare(self, images: Images) -> Float[Tensor, "b channels height width"]:
        """What the network proper is fed: converted, resized and normalised."""
        if images.shape[1] != self.channels:
            images = _convert(images, self.channels)
        if images.shape[-2:] != (self.size, self.size):
            sides = (self.size, self.size)  # in single precision: processors cannot resize bfloat16 with antialias
            images = F.interpolate(images.float(), sides, mode="bilinear", align_corners=False, antialias=True)
        return (images - self.mean) / self.std

    @property
    def head(self) -> nn.Module:
        """The layer that makes the logits: the last linear one, or the last convolution when logits are pooled."""
        return self.net.get_submodule(self.head_name)

    @property
    def whole_head(self) -> nn.Module:
        """The `Head` that `head` is part of, the outermost one; `head` itself where no defense has replaced it."""
        parts = self.head_name.split(".")
        around = (self.net.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts)))
        return next((module for module in around if isinstance(module, Head)), self.head)

    def _pick(self, output: object) -> Tensor:
        if isinstance(output, tuple | list):
            if self.logits_index is None:
                raise TargetError(
                    f"expected logits, got a tuple of {len(output)} from {type(self.net).__name__}; "
                    "say which one with logits_index in the sidecar json, such as 0 or -1"
                )
            output = output[self.logits_index]
        if not isinstance(output, Tensor) or output.ndim != 2:
            got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise TargetError(f"expected one row of logits per image, got {got}; is this network a classifier?")
        return output

    @torch.no_grad()
    def _trace(self) -> tuple[str, int]:
        device = next((parameter.device for parameter in self.net.parameters()), torch.device("cpu"))
        self.to(device)
        try:
            example = self.prepare(torch.zeros(2, self.channels, self.size, self.size, device=device))
            with evaluating(self.net):
                return find_head(self.net, lambda: self._pick(self.net(example)))
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TargetError(
                f"expected a network that accepts {self.channels}x{self.size}x{self.size} images, got the error "
                f"'{reason}'; correct --input-size or --channels"
            ) from error


def check_size(size: int) -> None:
    """Raise TargetError unless a network can be fed images of `size` pixels a side."""
    if not 1 <= size <= LARGEST:
        raise TargetError(f"expected an input size from 1 to {LARGEST} pixels, got {size}; correct --input-size")


def hastened(classifier: nn.Module) -> nn.Module:
    """A frozen copy of a `Classifier` that takes less time, checked on noise."""
    assert isinstance(classifier, Classifier)
    shape, generator = (2, classifier.channels, classifier.size, classifier.size), torch.Generator().manual_seed(0)
    return frozen(classifier, torch.rand(shape, generator=generator).to(classifier.mean.device))


def find_head(net: nn.Module, run: Callable[[], Tensor]) -> tuple[str, int]:
    """Dotted name of the layer of `net` that makes the logits that `run` returns, and the number of logits.

    It is the last linear layer or convolution that was executed with as many outputs as there are logits.
    """
    called: list[tuple[str, int]] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            called.append((name, output.shape[-1 if module.weight.ndim == 2 else 1]))

        return module.register_forward_hook(note)

    hooks = [watch(name, module) for name, module in net.named_modules() if _maps_features(module)]
    try:
        width = run().shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    heads = [name for name, outputs in called if outputs == width]
    if not heads:
        raise TargetError(
            f"expected a linear layer or convolution with {width} outputs, got none in {type(net).__name__}; "
            "end the network in nn.Linear"
        )
    return heads[-1], width


def _maps_features(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim in (2, 4) and not isinstance(module, nn.Embedding)


def _convert(images: Images, channels: int) -> Float[Tensor, "b channels h w"]:
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    if images.shape[1] == 3 and channels == 1:
        return (images * beside(images, LUMINANCE).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    raise TargetError(f"expected {channels}-channel images, got {images.shape[1]}; convert them or correct --channels")


def _per_channel(name: str, values: tuple[float, ...], channels: int) -> Float[Tensor, "1 c 1 1"]:
    if len(values) not in (1, channels):
        raise TargetError(f"expected 1 or {channels} numbers, got {name} {values}; correct --{name} or --channels")
    return torch.tensor(values, dtype=torch.float32).expand(channels).clone().view(1, channels, 1, 1)
