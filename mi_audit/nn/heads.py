"""Heads that let little through: what takes the place of the last linear layer of a classifier."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from mi_audit.core.errors import ConfigError
from mi_audit.core.types import Features, Logits, Scalar
from mi_audit.nn.classifier import Head, find_head
from mi_audit.nn.modes import evaluating
from mi_audit.nn.plain_data import truth, whole

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "none": nn.Identity,
}


class LowRankHead(Head):
    """Norm, linear to `rank` numbers, tanh, linear: the Jacobian of the logits has at most that rank.

    Args:
        width: Of the features.
        num_classes: Number of logits.
        rank: Numbers in between.
        norm: Of the features: `batch`, `layer` or `none`.
    """

    def __init__(self, width: int, num_classes: int, *, rank: int, norm: str) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ConfigError(f"expected a norm of {', '.join(NORMS)}, got {norm!r}; correct it")
        self.norm = NORMS[norm](width)
        self.reduce = nn.Linear(width, rank)
        self.classify = nn.Linear(rank, num_classes)

    def logits(self, features: Features) -> Logits:
        return self.classify(self.reduce(self.norm(features)).tanh())


class BottleneckHead(Head):
    """A variational bottleneck: `code` normal numbers per image, `z = mean + deviation * noise`, then a linear layer.

    `encode` gives the means and, after them, what `deviations` turns into standard deviations. Noise is drawn from the
    global generator of the device in training; in evaluation `z` is the mean, unless `eval_noise`.

    Args:
        width: Of the features.
        num_classes: Number of logits.
        code: Numbers in between.
        eval_noise: Draw noise in evaluation, too.
    """

    def __init__(self, width: int, num_classes: int, *, code: int, eval_noise: bool) -> None:
        super().__init__()
        self.eval_noise = eval_noise
        self.encode = nn.Linear(width, 2 * code)
        self.classify = nn.Linear(code, num_classes)

    def logits(self, features: Features) -> Logits:
        code, spread = self.encode(features).chunk(2, dim=1)
        if self.training or self.eval_noise:
            code = code + deviations(spread).to(code.dtype) * torch.randn_like(code)
        return self.classify(code)


SHIFT = 5.0  # deviations start at softplus(-5) = 0.0067: the bottleneck opens nearly without noise
_START = math.log1p(math.exp(-SHIFT))
WIDE_OPEN = (_START**2 - 1) / 2 - math.log(_START)  # nats that the divergence starts at per number, 4.5, with mean 0


def deviations(spread: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """`softplus(spread - 5)`, in single precision."""
    return F.softplus(spread.float() - SHIFT)


def divergence(encoded: Float[Tensor, "b d"]) -> Scalar:
    """Kullback-Leibler divergence of the code from the standard normal, in nats, summed over it, mean over the batch.

    `1/2 sum(mean^2 + deviation^2 - 1 - 2 log deviation)`. The logarithm of a softplus loses its digits far below zero,
    where softplus(t) = exp(t) - exp(2 t) / 2 + ...; from -10 on, the series `t - exp(t) / 2` is exact to 1e-9.

    Args:
        encoded: What `BottleneckHead.encode` gave: means, then spreads.
    """
    mean, spread = encoded.float().chunk(2, dim=1)
    shifted = spread - SHIFT
    near = F.softplus(shifted.clamp_min(-10)).log()
    log_deviation = torch.where(shifted < -10, shifted - shifted.clamp_max(-10).exp() / 2, near)
    return ((mean.square() + deviations(spread).square() - 1) / 2 - log_deviation).sum(dim=1).mean()


@dataclass(frozen=True, slots=True)
class Seat:
    """The last linear layer of a network: its dotted name, what it takes and what it gives."""

    name: str
    width: int
    num_classes: int


def find_seat(net: nn.Module, example: Tensor) -> Seat:
    """The layer that a head can replace: `nn.Linear`, or a 1x1 convolution of pooled features.

    Args:
        net: Without input normalisation; may be in any mode. Of several outputs the last layer's are the logits.
        example: Images as `net` is fed, for their shape.

    Raises:
        ConfigError: The last layer is another one, or the logits depend on the image in other ways than through it.
        TargetError: No layer has as many outputs as there are logits.
    """
    noise = torch.randn(2, *example.shape[1:], generator=torch.Generator().manual_seed(0)).to(example)
    with torch.no_grad(), evaluating(net):
        width = _last_width(net, noise)
        name, _ = find_head(net, lambda: _logits(net(noise), width))
        took, blanked = _blanked(net, name, noise, width)
    num_classes, features = _weight(net, name).shape[:2]
    if took != (2, features) and took != (2, features, 1, 1):
        raise ConfigError(f"expected pooled features before {name!r}, got the shape {took}; pool before the last layer")
    if not torch.equal(blanked[0], blanked[1]):
        raise ConfigError(
            f"expected logits that depend on the image through {name!r} alone, got another way around it (a second "
            "head?); use a network with one last layer"
        )
    return Seat(name, features, num_classes)


def low_rank_head(net: nn.Module, *, layer: str, rank: object, norm: str) -> None:
    """The edit `low-rank-head`: put a `LowRankHead` in the place of the linear layer called `layer`."""
    size = whole("rank", rank)
    _replace(net, layer, lambda width, num_classes: LowRankHead(width, num_classes, rank=size, norm=norm))


def bottleneck_head(net: nn.Module, *, layer: str, code: object, eval_noise: object) -> None:
    """The edit `bottleneck-head`: put a `BottleneckHead` in the place of the linear layer called `layer`."""
    size, noisy = whole("code", code), truth("eval_noise", eval_noise)
    _replace(net, layer, lambda width, num_classes: BottleneckHead(width, num_classes, code=size, eval_noise=noisy))


def _replace(net: nn.Module, name: str, build: Callable[[int, int], Head]) -> None:
    weight = _weight(net, name)
    num_classes, width = weight.shape[:2]
    head = build(width, num_classes).to(weight.device, weight.dtype)
    net.set_submodule(name, head.train(net.training))


def _weight(net: nn.Module, name: str) -> Tensor:
    """The weight of a layer that a head can replace."""
    layer = dict(net.named_modules()).get(name)
    if name and isinstance(layer, nn.Linear):
        return layer.weight
    if name and isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
        return layer.weight
    raise ConfigError(
        f"expected a linear layer or a 1x1 convolution inside the network called {name!r}, got "
        f"{type(layer).__name__}; end the network in nn.Linear"
    )


def _last_width(net: nn.Module, images: Tensor) -> int:
    """Number of outputs of the linear layer or convolution that ran last."""
    widths = [0]

    def note(layer: nn.Module, inputs: object, output: Tensor) -> None:
        del inputs
        widths.append(output.shape[1 if isinstance(layer, _ConvNd) else -1])

    hooks = [part.register_forward_hook(note) for part in net.modules() if isinstance(part, nn.Linear | _ConvNd)]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return widths[-1]


def _logits(output: object, width: int) -> Tensor:
    parts = output if isinstance(output, tuple | list) else (output,)
    rows = [part for part in parts if isinstance(part, Tensor) and part.ndim == 2]
    fitting = [row for row in rows if row.shape[1] == width] if len(rows) > 1 else rows
    if len(fitting) != 1:
        raise ConfigError(
            f"expected one output with logits, got {len(fitting)}; use a network that returns logits only"
        )
    return fitting[0]


def _blanked(net: nn.Module, name: str, images: Tensor, width: int) -> tuple[tuple[int, ...], Tensor]:
    """The shape that the layer takes, and the logits when it answers zero to everything."""
    shapes: list[tuple[int, ...]] = []

    def blank(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        del layer
        shapes.append(tuple(inputs[0].shape))
        return torch.zeros_like(output)

    hook = net.get_submodule(name).register_forward_hook(blank)
    try:
        logits = _logits(net(images), width)
    finally:
        hook.remove()
    return shapes[-1], logits
