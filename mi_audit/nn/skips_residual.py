"""Residual networks with scaled skip connections: ResNet, ResNeXt, WideResNet, ResNeSt, Res2Net, RegNet and kin."""

from collections.abc import Callable, Mapping, Sequence

import timm.models.byobnet
import timm.models.regnet
import timm.models.res2net
import timm.models.resnest
import timm.models.resnet
import torch
import torchvision
from torch import Tensor, nn

from mi_audit.nn.skips_joining import IDENTITY, Add, Handler, Handlers, join

RESIDUAL = "residual"


def by(projection: str, *, optional: bool = False) -> Callable[[nn.Module], Mapping[str, Add]]:
    """Finds the one add of a block whose attribute `projection` holds the shortcut.

    Where the attribute is None the shortcut is the identity, or with `optional` there is no shortcut.
    """

    def adds(block: nn.Module) -> Mapping[str, Add]:
        shortcut = getattr(block, projection)
        if shortcut is None and optional:
            return {}
        plain = shortcut is None or isinstance(shortcut, nn.Identity)
        return {RESIDUAL: IDENTITY if plain else Add("projection", projection)}

    return adds


def chain(
    stock: type[nn.Module],
    branch: Sequence[str],
    after: str | None,
    *,
    projection: str = "downsample",
    drop_path: str | None = "drop_path",
    optional: bool = False,
) -> Handler:
    """A block whose branch is a chain of layers: `y = after(branch(x) + k projection(x))`.

    Args:
        stock: The class of the block.
        branch: Attributes with its layers in the order in which they run; those that are None are left out.
        after: Attribute with what follows the add.
        projection: Attribute with the shortcut.
        drop_path: Attribute with the stochastic depth of the branch.
        optional: Whether a shortcut of None means none instead of the identity.
    """

    class Scaled(stock):  # type: ignore[misc, valid-type]
        def forward(self, inputs: Tensor) -> Tensor:
            features = inputs
            for layer in [getattr(self, name) for name in branch]:
                features = features if layer is None else layer(features)
            drop = getattr(self, drop_path) if drop_path else None
            shortcut = getattr(self, projection)
            joined = join(self, RESIDUAL, features, inputs, projection=shortcut, drop_path=drop)
            return getattr(self, after)(joined) if after else joined

    Scaled.__name__ = Scaled.__qualname__ = f"Scaled{stock.__name__}"
    return Handler(Scaled, by(projection, optional=optional))


class ScaledBottle2neck(timm.models.res2net.Bottle2neck):
    """The unit of Res2Net: the middle of its branch is a ladder of convolutions over groups of channels."""

    def forward(self, inputs: Tensor) -> Tensor:
        """`relu(branch(x) + k downsample(x))`."""
        groups = self.relu(self.bn1(self.conv1(inputs))).split(self.width, dim=1)
        steps: list[Tensor] = []
        for group, conv, norm in zip(groups, self.convs, self.bns, strict=False):
            fed = group if self.is_first or not steps else steps[-1] + group
            steps.append(self.relu(norm(conv(fed))))
        if self.scale > 1:
            steps.append(groups[-1] if self.pool is None else self.pool(groups[-1]))
        features = self.bn3(self.conv3(self.drop_block(torch.cat(steps, dim=1))))
        features = features if self.se is None else self.se(features)
        shortcut, drop = self.downsample, self.drop_path
        return self.relu(join(self, RESIDUAL, features, inputs, projection=shortcut, drop_path=drop))


class ScaledPreBottleneck(timm.models.regnet.PreBottleneck):
    """The unit of RegNetV, whose shortcut starts behind the first norm."""

    def forward(self, inputs: Tensor) -> Tensor:
        """`branch(norm(x)) + k downsample(norm(x))`."""
        start = self.norm1(inputs)
        features = self.norm3(self.se(self.conv2(self.norm2(self.conv1(start)))))
        shortcut, drop = self.downsample, self.drop_path
        return join(self, RESIDUAL, self.conv3(features), start, projection=shortcut, drop_path=drop)


_resnet, _byob, _vision = timm.models.resnet, timm.models.byobnet, torchvision.models
_BASIC = ("conv1", "bn1", "drop_block", "act1", "aa", "conv2", "bn2", "se")
_BOTTLENECK = ("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3", "bn3", "se")
_SPLIT = ("conv1", "bn1", "act1", "avd_first", "conv2", "bn2", "drop_block", "act2", "avd_last", "conv3", "bn3")
_BYOB: Mapping[type[nn.Module], Sequence[str]] = {
    _byob.BasicBlock: ("conv1_kxk", "attn", "conv2_kxk", "attn_last"),
    _byob.BottleneckBlock: ("conv1_1x1", "conv2_kxk", "conv2b_kxk", "attn", "conv3_1x1", "attn_last"),
    _byob.EdgeBlock: ("conv1_kxk", "attn", "conv2_1x1", "attn_last"),
    _byob.DarkBlock: ("conv1_1x1", "attn", "conv2_kxk", "attn_last"),
}

HANDLERS: Handlers = {
    _vision.resnet.BasicBlock: chain(
        _vision.resnet.BasicBlock, ("conv1", "bn1", "relu", "conv2", "bn2"), "relu", drop_path=None
    ),
    _vision.resnet.Bottleneck: chain(
        _vision.resnet.Bottleneck,
        ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3"),
        "relu",
        drop_path=None,
    ),
    _vision.regnet.ResBottleneckBlock: chain(
        _vision.regnet.ResBottleneckBlock, ("f",), "activation", projection="proj", drop_path=None
    ),
    _resnet.BasicBlock: chain(_resnet.BasicBlock, _BASIC, "act2"),
    _resnet.Bottleneck: chain(_resnet.Bottleneck, _BOTTLENECK, "act3"),
    timm.models.resnest.ResNestBottleneck: chain(timm.models.resnest.ResNestBottleneck, _SPLIT, "act3"),
    timm.models.res2net.Bottle2neck: Handler(ScaledBottle2neck, by("downsample")),
    timm.models.regnet.Bottleneck: chain(
        timm.models.regnet.Bottleneck, ("conv1", "conv2", "se", "conv3"), "act3", optional=True
    ),
    timm.models.regnet.PreBottleneck: Handler(ScaledPreBottleneck, by("downsample", optional=True)),
} | {stock: chain(stock, branch, "act", projection="shortcut", optional=True) for stock, branch in _BYOB.items()}
