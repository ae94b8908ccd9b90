"""MobileNet, EfficientNet, MNASNet, DenseNet and RepVGG with scaled skip connections."""

from collections.abc import Mapping, Sequence
from functools import partial

import timm.models._efficientnet_blocks
import timm.models.byobnet
import timm.models.densenet
import torch
import torchvision
from timm.layers.layer_scale import LayerScale2d
from torch import Tensor, nn

from mi_audit.nn.skips_joining import (
    IDENTITY,
    Add,
    Handler,
    Handlers,
    asked,
    carried,
    factor,
    join,
    note,
    scaling,
    watched,
)

RESIDUAL, NORM = "residual", "identity"


def inverted(stock: type[nn.Module], flag: str, drop_path: str | None = None) -> Handler:
    """A block without a layer behind the add: `y = branch(x) + k x` where its `flag` is set.

    The scaled block has its flag cleared, so that the stock forward gives the branch alone.

    Args:
        stock: The class of the block.
        flag: Attribute that says whether this one has a skip connection.
        drop_path: Attribute with the stochastic depth of the branch, which the stock forward runs under `flag` only.
    """

    class Scaled(stock):  # type: ignore[misc, valid-type]
        def forward(self, inputs: Tensor) -> Tensor:
            branch = super().forward(inputs)
            return join(self, RESIDUAL, branch, inputs, drop_path=getattr(self, drop_path) if drop_path else None)

    Scaled.__name__ = Scaled.__qualname__ = f"Scaled{stock.__name__}"
    return Handler(Scaled, partial(_flagged, flag), partial(_clear, flag))


def _flagged(flag: str, block: nn.Module) -> Mapping[str, Add]:
    return {RESIDUAL: IDENTITY} if getattr(block, flag) else {}


def _clear(flag: str, block: nn.Module, factors: Mapping[str, float]) -> None:
    setattr(block, flag, False)
    scale = getattr(block, "layer_scale", None)
    if isinstance(scale, LayerScale2d) and 0 in factors.values():
        nn.init.ones_(
            scale.gamma
        )  # it begins near nothing, which only a shortcut can afford; public weights replace it


def dense(stock: type[nn.Module]) -> Handler:
    """A dense block. Of the channels that a layer carries over beside its own, the first `round(k C)` are kept.

    The others become zero, so that shapes, public weights and the width of the head survive. A channel that one layer
    drops stays dropped: at `k = 0` a layer, or what follows the block, sees what the layer before has made and no more.
    Multiplying by `k` would do nothing, because every layer begins with a batch norm.

    Args:
        stock: The class of the block, a `ModuleDict` of its layers.
    """

    class Scaled(stock):  # type: ignore[misc, valid-type]
        def forward(self, inputs: Tensor) -> Tensor:
            features = [inputs]
            for name, layer in self.items():
                newest = layer(features)
                features = _carried(features, asked(self, name))
                if watched(self, name):
                    note(scaling(self), name, torch.cat(features, dim=1), newest)
                features.append(newest)
            return torch.cat(features, dim=1)

    Scaled.__name__ = Scaled.__qualname__ = f"Scaled{stock.__name__.lstrip('_')}"
    return Handler(Scaled, lambda block: dict.fromkeys(block.keys(), Add("dense")))


def _carried(features: list[Tensor], k: float) -> list[Tensor]:
    if k == 1:
        return list(features)
    return [carried(torch.cat(features, dim=1), k)]


class ScaledRepVggBlock(timm.models.byobnet.RepVggBlock):
    """The unit of RepVGG as it is trained: `act(norm(conv3(x)) + norm(conv1(x)) + k norm(x))`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The formula, or the one convolution that the branches were merged into."""
        if self.reparam_conv is not None:
            return super().forward(inputs)
        # the shortcut first, as in the stock block, or the gradients of the three would be summed in another order
        shortcut = self.identity(inputs) if asked(self, NORM) else inputs
        branches = self.conv_1x1(inputs) + self.conv_kxk(inputs)
        joined = join(self, NORM, branches, shortcut, drop_path=self.drop_path)
        return self.act(self.attn(joined))

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge the branches, the third with its factor."""
        if self.reparam_conv is None and self.identity is not None:
            k = factor(self, NORM)
            self.identity.weight.mul_(k)
            self.identity.bias.mul_(k)
        super().reparameterize()


def _branches(block: nn.Module) -> Mapping[str, Add]:
    merged = block.reparam_conv is not None
    return {} if merged or block.identity is None else {NORM: Add("norm", "identity")}


_mobile, _vision = timm.models._efficientnet_blocks, torchvision.models
_FLAGGED: Sequence[tuple[type[nn.Module], str, str | None]] = (
    (_vision.mobilenetv2.InvertedResidual, "use_res_connect", None),
    (_vision.mobilenetv3.InvertedResidual, "use_res_connect", None),
    (_vision.mnasnet._InvertedResidual, "apply_residual", None),
    (_vision.efficientnet.MBConv, "use_res_connect", "stochastic_depth"),
    (_vision.efficientnet.FusedMBConv, "use_res_connect", "stochastic_depth"),
    (_mobile.ConvBnAct, "has_skip", "drop_path"),
    (_mobile.DepthwiseSeparableConv, "has_skip", "drop_path"),
    (_mobile.InvertedResidual, "has_skip", "drop_path"),
    (_mobile.UniversalInvertedResidual, "has_skip", "drop_path"),
    (_mobile.CondConvResidual, "has_skip", "drop_path"),
    (_mobile.EdgeResidual, "has_skip", "drop_path"),
)

HANDLERS: Handlers = {
    **{stock: inverted(stock, flag, drop_path) for stock, flag, drop_path in _FLAGGED},
    _vision.densenet._DenseBlock: dense(_vision.densenet._DenseBlock),
    timm.models.densenet.DenseBlock: dense(timm.models.densenet.DenseBlock),
    timm.models.byobnet.RepVggBlock: Handler(ScaledRepVggBlock, _branches),
}
