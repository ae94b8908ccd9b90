"""MaxViT and CoAtNet with scaled skip connections: convolutions, window and grid attention."""

from collections.abc import Callable, Mapping
from typing import Any

import timm.models.maxxvit
from torch import Tensor, nn
from torchvision.models import maxvit

from mi_audit.nn.skips_attention import ATTENTION, MLP, SCALES, first, onto, opening
from mi_audit.nn.skips_joining import IDENTITY, Add, Handler, Handlers, join

MB = "mb"


class ScaledMBConv(maxvit.MBConv):  # type: ignore[misc]
    """The convolution in torchvision's MaxViT; features `b c h w`."""

    def forward(self, x: Tensor) -> Tensor:
        """Inverted bottleneck with a skip, which is pooled and projected where the resolution changes."""
        return onto(self, MB, self.layers(x), x, projection=self.proj, drop_path=self.stochastic_depth)


class ScaledPartitionAttentionLayer(maxvit.PartitionAttentionLayer):  # type: ignore[misc]
    """The window or grid attention in torchvision's MaxViT; features `b c h w`."""

    def forward(self, x: Tensor) -> Tensor:
        """Attention and perceptron within the parts, each with its skip."""
        attention, mlp = _torchvision_parts(self)
        x = self.partition_swap(self.partition_op(x, self.p))
        x = onto(self, attention, self.attn_layer(x), x, drop_path=self.stochastic_dropout)
        x = onto(self, mlp, self.mlp_layer(x), x, drop_path=self.stochastic_dropout)
        return self.departition_op(
            self.departition_swap(x), self.p, self.grid_size[0] // self.p, self.grid_size[1] // self.p
        )


class ScaledMbConvBlock(timm.models.maxxvit.MbConvBlock):
    """The convolution in timm's MaxViT and CoAtNet; features `b c h w`."""

    def forward(self, x: Tensor) -> Tensor:
        """Inverted bottleneck with a skip, which is pooled and projected where the resolution changes."""
        branch = self.conv2_kxk(self.norm1(self.conv1_1x1(self.down(self.pre_norm(x)))))
        branch = self.norm2(branch if self.se_early is None else self.se_early(branch))
        branch = self.conv3_1x1(branch if self.se is None else self.se(branch))
        return join(self, MB, branch, x, projection=self.shortcut, drop_path=self.drop_path)


class ScaledMaxxViTConvNeXtBlock(timm.models.maxxvit.ConvNeXtBlock):
    """The ConvNeXt block in timm's hybrids with MaxViT and CoAtNet; features `b c h w`."""

    def forward(self, x: Tensor) -> Tensor:
        """Depthwise convolution and perceptron with layer scale and a skip."""
        branch = self.conv_dw(self.down(x))
        if self.use_conv_mlp:
            branch = self.ls(self.mlp(self.norm(branch)))
        else:
            branch = self.ls(self.mlp(self.norm(branch.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return join(self, MB, branch, x, projection=self.shortcut, drop_path=self.drop_path)


class ScaledTransformerBlock2d(timm.models.maxxvit.TransformerBlock2d):
    """The transformer unit in timm's CoAtNet; features `b c h w`."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """Attention and perceptron; the first skip is pooled and projected where the resolution changes."""
        branch = self.ls1(self.attn(self.norm1(x), shared_rel_pos=shared_rel_pos))
        x = onto(self, ATTENTION, branch, x, projection=self.shortcut, drop_path=self.drop_path1)
        return onto(self, MLP, self.ls2(self.mlp(self.norm2(x))), x, drop_path=self.drop_path2)


class ScaledPartitionAttentionCl(timm.models.maxxvit.PartitionAttentionCl):
    """The window or grid attention in timm's MaxViT; features `b h w c`."""

    def forward(self, x: Tensor) -> Tensor:
        """Attention and perceptron within the parts, each with its layer scale and its skip."""
        return _partitioned(self, x)


class ScaledPartitionAttention2d(timm.models.maxxvit.PartitionAttention2d):
    """The window or grid attention in timm's MaxViT; features `b c h w`."""

    def forward(self, x: Tensor) -> Tensor:
        """Attention and perceptron within the parts, each with its layer scale and its skip."""
        return _partitioned(self, x)


class ScaledParallelPartitionAttention(timm.models.maxxvit.ParallelPartitionAttention):
    """Window and grid attention side by side in timm's MaxViT; features `b h w c`."""

    def forward(self, x: Tensor) -> Tensor:
        """Both attentions and the perceptron within the parts, each with its layer scale and its skip."""
        return _partitioned(self, x)


def _partitioned(block: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    attention, mlp = _timm_parts(block)
    x = onto(block, attention, block.ls1(block._partition_attn(block.norm1(x))), x, drop_path=block.drop_path1)
    return onto(block, mlp, block.ls2(block.mlp(block.norm2(x))), x, drop_path=block.drop_path2)


def _torchvision_parts(block: nn.Module) -> tuple[str, str]:
    return f"{block.partition_type}_{ATTENTION}", f"{block.partition_type}_{MLP}"


def _timm_parts(block: nn.Module) -> tuple[str, str]:
    window = getattr(block, "partition_block", None)  # None: both side by side
    part = "parallel" if window is None else "window" if window else "grid"
    return f"{part}_{ATTENTION}", f"{part}_{MLP}"


def _parts(named: Callable[[nn.Module], tuple[str, str]]) -> Callable[[nn.Module], Mapping[str, Add]]:
    return lambda block: dict.fromkeys(named(block), IDENTITY)


_mix = timm.models.maxxvit

HANDLERS: Handlers = {
    maxvit.MBConv: Handler(ScaledMBConv, first(MB, "proj")),
    maxvit.PartitionAttentionLayer: Handler(ScaledPartitionAttentionLayer, _parts(_torchvision_parts)),
    _mix.MbConvBlock: Handler(ScaledMbConvBlock, first(MB, "shortcut")),
    _mix.ConvNeXtBlock: Handler(ScaledMaxxViTConvNeXtBlock, first(MB, "shortcut"), opening(mb="ls.gamma")),
    _mix.TransformerBlock2d: Handler(ScaledTransformerBlock2d, first(ATTENTION, "shortcut", MLP), SCALES),
    _mix.PartitionAttentionCl: Handler(ScaledPartitionAttentionCl, _parts(_timm_parts), SCALES, channels_last=True),
    _mix.PartitionAttention2d: Handler(ScaledPartitionAttention2d, _parts(_timm_parts), SCALES),
    _mix.ParallelPartitionAttention: Handler(
        ScaledParallelPartitionAttention, _parts(_timm_parts), SCALES, channels_last=True
    ),
}
