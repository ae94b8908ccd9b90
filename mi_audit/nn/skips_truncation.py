"""Dense blocks whose carried channels are cut off instead of set to zero, as the released code of RoLSS does it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mi_audit.core.defense import Edit
from mi_audit.core.errors import ConfigError
from mi_audit.nn.heads import find_seat
from mi_audit.nn.plain_data import integer
from mi_audit.nn.skips import Skip
from mi_audit.nn.skips_joining import Add, Handler, Scaling, note, scaling

NAME = "dense-truncation"  # of the edit


def edit(net: nn.Module, example: Tensor, chosen: Sequence[Skip], k: float) -> Edit:
    """The edit that cuts off all but the first `round(k C)` channels, of the C that the dense block is given.

    Args:
        net: Not changed.
        example: Images as `net` is fed.
        chosen: Skip connections of one dense block, the last before the head.
        k: Share of the block's input channels that every layer carries over.

    Raises:
        ConfigError: The skip connections are no concatenations, or something else than a norm lies between the block
            and the head.
    """
    (block, *others) = dict.fromkeys(skip.block for skip in chosen)
    if others or any(skip.kind != "dense" for skip in chosen):
        raise ConfigError(
            f"expected one dense block to cut channels off, got {', '.join(sorted({s.block_class for s in chosen}))}; "
            "dense_mode=truncate is for DenseNets, leave it out"
        )
    trunk, _, last = block.rpartition(".")
    children = dict(net.get_submodule(trunk).named_children())
    after = list(children)[list(children).index(last) + 1 :]
    norms = [name for name in after if isinstance(children[name], _BatchNorm)]
    if len(norms) != 1:
        raise ConfigError(f"expected one batch norm behind {block}, got {', '.join(after) or 'nothing'}; use mask")
    first: Any = next(net.get_submodule(block).children())
    return {
        "edit": NAME,
        "block": block,
        "keep": round(k * first.norm1.num_features),
        "norm": f"{trunk}.{norms[0]}".strip("."),
        "head": find_seat(net, example).name,
    }


def truncate(net: nn.Module, *, block: str, keep: object, norm: str, head: str) -> None:
    """Narrow every layer of a dense block but the first, the norm behind it and the head; what is narrowed is fresh.

    Args:
        net: Changed in place.
        block: Dotted name of the dense block.
        keep: Channels of its input that every layer carries over.
        norm: Dotted name of the batch norm behind it.
        head: Dotted name of the last linear layer.

    Raises:
        ConfigError: They are not what their names say.
    """
    modules, kept = dict(net.named_modules()), integer("keep", keep)
    dense, behind, linear = modules.get(block), modules.get(norm), modules.get(head)
    layers: list[Any] = list(dense.children()) if isinstance(dense, nn.ModuleDict) and scaling(dense) is None else []
    if dense is None or not layers or not isinstance(behind, _BatchNorm) or not isinstance(linear, nn.Linear):
        raise ConfigError(f"expected a stock dense block {block}, a batch norm {norm} and a linear {head}; name them")
    if not 0 <= kept < layers[0].norm1.num_features:
        raise ConfigError(f"expected fewer channels than the {layers[0].norm1.num_features} of {block}, got {kept}")
    width = kept + layers[0].conv2.out_channels
    for layer in layers[1:]:
        _narrow_norm(layer.norm1, width)
        layer.conv1.in_channels = width
        layer.conv1.weight = nn.Parameter(nn.init.kaiming_normal_(layer.conv1.weight.detach()[:, :width].clone()))
    _narrow_norm(behind, width)
    linear.in_features = width
    linear.weight = nn.Parameter(linear.weight.detach()[:, :width].clone())
    about: Any = net
    if isinstance(getattr(about, "num_features", None), int):  # timm says there how wide the features are
        about.num_features = about.head_hidden_size = width
    handler = _handler(type(dense))
    adds = dict(handler.adds(dense))
    share = dict.fromkeys(adds, kept / layers[0].norm1.num_features)
    dense.keep_channels = kept
    dense.__class__ = handler.scaled
    dense.skip_scaling = Scaling(handler, adds, dict(share), dict(share))


def _narrow_norm(norm: Any, width: int) -> None:  # noqa: ANN401
    norm.num_features = width
    for name, tensor in (("weight", torch.ones(width)), ("bias", torch.zeros(width))):
        setattr(norm, name, nn.Parameter(tensor.to(getattr(norm, name))))
    norm.running_mean, norm.running_var = norm.running_mean[:width].clone(), norm.running_var[:width].clone()
    norm.reset_running_stats()


def _handler(stock: type[nn.Module]) -> Handler:
    class Truncated(stock):  # type: ignore[misc, valid-type]
        def forward(self, inputs: Tensor) -> Tensor:
            features = inputs
            for name, layer in self.items():
                newest, carried = layer([features]), features[:, : self.keep_channels]
                note(scaling(self), name, carried, newest)
                features = torch.cat([carried, newest], dim=1)
            return features

    Truncated.__name__ = Truncated.__qualname__ = f"Truncated{stock.__name__.lstrip('_')}"
    return Handler(Truncated, lambda block: dict.fromkeys(block.keys(), Add("dense")))
