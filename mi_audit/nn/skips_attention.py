"""Transformer and ConvNeXt blocks with scaled skip connections: ViT, DeiT, Swin and ConvNeXt."""

from collections.abc import Callable, Mapping
from functools import partial

import timm.models.convnext
import timm.models.swin_transformer
import timm.models.swin_transformer_v2
import timm.models.vision_transformer
import torch
from torch import Tensor, nn
from torchvision.models import convnext, swin_transformer, vision_transformer

from mi_audit.nn.skips_joining import IDENTITY, Add, Handler, Handlers, factor, join

ATTENTION, MLP, RESIDUAL = "attention", "mlp", "residual"
CLOSED = 0.1  # of an open gate: below it, a branch alone passes on next to nothing


onto = partial(join, shortcut_first=True)


class ScaledEncoderBlock(vision_transformer.EncoderBlock):  # type: ignore[misc]
    """The unit of torchvision's ViT; tokens `b n d`."""

    def forward(self, input: Tensor) -> Tensor:
        """Attention and perceptron behind their norms, each with its skip."""
        normed = self.ln_1(input)
        branch, _ = self.self_attention(normed, normed, normed, need_weights=False)
        x = join(self, ATTENTION, self.dropout(branch), input)
        return onto(self, MLP, self.mlp(self.ln_2(x)), x)


class ScaledTransformerEncoderLayer(nn.TransformerEncoderLayer):
    """The unit of PyTorch's own encoder; tokens `b n d` or `n b d`."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attention and perceptron, each with its norm and its skip."""
        if factor(self, ATTENTION) == factor(self, MLP) == 1:  # PyTorch may take its fused path
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        normed = self.norm1(src) if self.norm_first else src
        x = onto(self, ATTENTION, self._sa_block(normed, src_mask, src_key_padding_mask, is_causal=is_causal), src)
        if self.norm_first:
            return onto(self, MLP, self._ff_block(self.norm2(x)), x)
        x = self.norm1(x)
        return self.norm2(onto(self, MLP, self._ff_block(x), x))


class ScaledBlock(timm.models.vision_transformer.Block):
    """The unit of timm's ViT, DeiT and DeiT-III; tokens `b n d`."""

    def forward(self, x: Tensor, **masks: object) -> Tensor:  # type: ignore[override]
        """Attention and perceptron behind their norms, each with its layer scale and its skip."""
        branch = self.ls1(self.attn(self.norm1(x), **masks))
        x = onto(self, ATTENTION, branch, x, drop_path=self.drop_path1)
        return onto(self, MLP, self.ls2(self.mlp(self.norm2(x))), x, drop_path=self.drop_path2)


class ScaledResPostBlock(timm.models.vision_transformer.ResPostBlock):
    """The unit of timm's ViT with norms at the end of the branches; tokens `b n d`."""

    def forward(self, x: Tensor, **masks: object) -> Tensor:  # type: ignore[override]
        """Attention and perceptron before their norms, each with its skip."""
        x = onto(self, ATTENTION, self.norm1(self.attn(x, **masks)), x, drop_path=self.drop_path1)
        return onto(self, MLP, self.norm2(self.mlp(x)), x, drop_path=self.drop_path2)


class ScaledSwinBlock(swin_transformer.SwinTransformerBlock):  # type: ignore[misc]
    """The unit of torchvision's Swin; features `b h w c`."""

    def forward(self, x: Tensor) -> Tensor:
        """Window attention and perceptron behind their norms, each with its skip."""
        x = onto(self, ATTENTION, self.attn(self.norm1(x)), x, drop_path=self.stochastic_depth)
        return onto(self, MLP, self.mlp(self.norm2(x)), x, drop_path=self.stochastic_depth)


class ScaledSwinBlockV2(swin_transformer.SwinTransformerBlockV2):  # type: ignore[misc]
    """The unit of torchvision's Swin v2; features `b h w c`."""

    def forward(self, x: Tensor) -> Tensor:
        """Window attention and perceptron before their norms, each with its skip."""
        x = onto(self, ATTENTION, self.norm1(self.attn(x)), x, drop_path=self.stochastic_depth)
        return onto(self, MLP, self.norm2(self.mlp(x)), x, drop_path=self.stochastic_depth)


class ScaledTimmSwinBlock(timm.models.swin_transformer.SwinTransformerBlock):
    """The unit of timm's Swin; features `b h w c`, flattened for the perceptron as there."""

    def forward(self, x: Tensor) -> Tensor:
        """Window attention and perceptron behind their norms, each with its skip."""
        shape = x.shape
        x = onto(self, ATTENTION, self._attn(self.norm1(x)), x, drop_path=self.drop_path1).flatten(1, 2)
        return onto(self, MLP, self.mlp(self.norm2(x)), x, drop_path=self.drop_path2).reshape(shape)


class ScaledTimmSwinBlockV2(timm.models.swin_transformer_v2.SwinTransformerV2Block):
    """The unit of timm's Swin v2; features `b h w c`, flattened for the perceptron as there."""

    def forward(self, x: Tensor) -> Tensor:
        """Window attention and perceptron before their norms, each with its skip."""
        shape = x.shape
        x = onto(self, ATTENTION, self.norm1(self._attn(x)), x, drop_path=self.drop_path1).flatten(1, 2)
        return onto(self, MLP, self.norm2(self.mlp(x)), x, drop_path=self.drop_path2).reshape(shape)


class ScaledCNBlock(convnext.CNBlock):  # type: ignore[misc]
    """The unit of torchvision's ConvNeXt; features `b c h w`."""

    def forward(self, input: Tensor) -> Tensor:
        """Depthwise convolution and perceptron with layer scale and a skip."""
        branch = self.layer_scale * self.block(input)
        return join(self, RESIDUAL, branch, input, drop_path=self.stochastic_depth)


class ScaledConvNeXtBlock(timm.models.convnext.ConvNeXtBlock):
    """The unit of timm's ConvNeXt v1 and v2; features `b c h w`."""

    def forward(self, x: Tensor) -> Tensor:
        """Depthwise convolution and perceptron with layer scale and a skip."""
        branch = self.conv_dw(x)
        if self.use_conv_mlp:
            branch = self.mlp(self.norm(branch))
        else:
            branch = self.mlp(self.norm(branch.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        if self.gamma is not None:
            branch = branch.mul(self.gamma.reshape(1, -1, 1, 1))
        return join(self, RESIDUAL, branch, x, projection=self.shortcut, drop_path=self.drop_path)


def _plain(*adds: str) -> Callable[[nn.Module], Mapping[str, Add]]:
    return lambda _: dict.fromkeys(adds, IDENTITY)


def first(add: str, projection: str, *rest: str) -> Callable[[nn.Module], Mapping[str, Add]]:
    """Finds an add whose skip is a projection unless `projection` passes its input on, and others that are plain."""

    def adds(block: nn.Module) -> Mapping[str, Add]:
        plain = isinstance(getattr(block, projection), nn.Identity)
        return {add: IDENTITY if plain else Add("projection", projection)} | dict.fromkeys(rest, IDENTITY)

    return adds


def opening(**gates: str) -> Callable[[nn.Module, Mapping[str, float]], None]:
    """Sets the gate of every branch that loses its skip to 1 while it is closed.

    A gate multiplies each channel of a branch: a layer scale, or the weight of a norm at the end. Libraries start it
    close to 0, and a block of nothing but a closed branch passes on no signal. A short training with the skip leaves it
    there, if not equal in all channels: what counts is its mean size, and 1 is open.

    Args:
        gates: Dotted name of the gate in the block by the end of the name of its add.
    """

    @torch.no_grad()
    def install(block: nn.Module, factors: Mapping[str, float]) -> None:
        parameters, removed = dict(block.named_parameters()), [add for add, factor in factors.items() if factor == 0]
        for end, name in gates.items():
            gate = parameters.get(name)
            if gate is not None and any(add.endswith(end) for add in removed) and gate.abs().mean() < CLOSED:
                gate.fill_(1)

    return install


_TWO = _plain(ATTENTION, MLP)
SCALES = opening(attention="ls1.gamma", mlp="ls2.gamma")
_NORMS = opening(attention="norm1.weight", mlp="norm2.weight")

HANDLERS: Handlers = {
    nn.TransformerEncoderLayer: Handler(ScaledTransformerEncoderLayer, _TWO, channels_last=True),
    vision_transformer.EncoderBlock: Handler(ScaledEncoderBlock, _TWO, channels_last=True),
    timm.models.vision_transformer.Block: Handler(ScaledBlock, _TWO, SCALES, channels_last=True),
    timm.models.vision_transformer.ResPostBlock: Handler(ScaledResPostBlock, _TWO, _NORMS, channels_last=True),
    swin_transformer.SwinTransformerBlock: Handler(ScaledSwinBlock, _TWO, channels_last=True),
    swin_transformer.SwinTransformerBlockV2: Handler(ScaledSwinBlockV2, _TWO, _NORMS, channels_last=True),
    timm.models.swin_transformer.SwinTransformerBlock: Handler(ScaledTimmSwinBlock, _TWO, channels_last=True),
    timm.models.swin_transformer_v2.SwinTransformerV2Block: Handler(
        ScaledTimmSwinBlockV2, _TWO, _NORMS, channels_last=True
    ),
    convnext.CNBlock: Handler(ScaledCNBlock, _plain(RESIDUAL), opening(residual="layer_scale")),
    timm.models.convnext.ConvNeXtBlock: Handler(
        ScaledConvNeXtBlock, first(RESIDUAL, "shortcut"), opening(residual="gamma")
    ),
}
