"""RoLSS: remove the skip connections of the last stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from mi_audit.core.defense import MASKING, Defense, Edit, Slot
from mi_audit.core.errors import ConfigError
from mi_audit.core.paper import Paper
from mi_audit.nn import skips, skips_truncation

THIRD, SPLIT = "layer3", 0.8  # the released code builds this stage without the skips behind its first 80 % of blocks


@dataclass(frozen=True, kw_only=True)
class RoLSS(Defense):
    """Train a network whose last blocks with skip connections compute `g(z)` instead of `g(z) + S(z)`.

    The paper finds that inversion follows the gradient through the skip connections, most of all those of the last
    stage. The last stage is the last resolution that has a skip connection: final blocks without any, as in MobileNetV2
    and EfficientNet, do not count. Networks of one resolution such as ViT lose those of their last quarter of blocks.
    Projection shortcuts go with their weights. In dense blocks a layer sees only what the layer before has made.

    Attributes:
        keep_projection: Remove identity shortcuts only, not those that change the shape: the milder variant.
        parity: Also what the released code removes besides, whatever its settings say: all skip connections of `layer3`
            of a ResNet behind its first 80 % of blocks. The first block keeps its own.
        dense_mode: In dense blocks `mask` sets what is not carried over to zero; `truncate` cuts it off as the released
            code does, so that public weights of the block no longer fit and the head sees as few numbers as one layer
            makes, which is a defense of its own (see `loft`).

    Raises:
        ConfigError: The network has no skip connections, or with `parity` is no ResNet, or with `truncate` no DenseNet.
    """

    paper: ClassVar = Paper(
        title="On the Vulnerability of Skip Connections to Model Inversion Attacks",
        authors="Koh et al.",
        venue="ECCV 2024",
        url="https://arxiv.org/abs/2409.01696",
    )
    smoke: ClassVar = {}
    # what it takes from the attacker is a path of the gradient; that the weights hold less is not shown
    kind: ClassVar[str] = "gradient-masking"
    adaptive: ClassVar[str] = (
        "forward through the defended network, backward as if every removed skip connection were there (BPDA); attack "
        "a student with all skip connections that was distilled from this model"
    )
    caution: ClassVar = MASKING
    slots: ClassVar = frozenset({Slot.SURGERY})
    deviations: ClassVar[tuple[str, ...]] = (
        "The released code also removes skip connections at the end of the third stage of every ResNet, in the "
        "undefended models too; here only `parity` does.",
        "Its settings for MobileNetV2 and EfficientNet change nothing, because they name a last stage without a skip "
        "connection; here the last stage that has one is meant.",
        "It keeps the weights of removed projections as dead parameters; here they are deleted.",
        "In DenseNets it cuts channels off, so that public weights no longer fit and the input of the head shrinks to "
        "the growth rate; here these channels are zero, and the rest of the network keeps its shape, unless "
        "`dense_mode` is `truncate`.",
    )
    excludes: ClassVar[Mapping[str, str]] = {
        "ssf": "it scales the skip connections that rolss removes",
        "tts": "it removes the same skip connections, only later",
    }

    keep_projection: bool = False
    parity: bool = False
    dense_mode: Literal["mask", "truncate"] = "mask"

    def edits(self, net: nn.Module, example: Tensor) -> Sequence[Edit]:
        found = skips.find(net, example)
        chosen = (
            *(_third(found) if self.parity else ()),
            *skips.last_stage(found, projections=not self.keep_projection),
        )
        if self.dense_mode == "truncate":
            return (skips_truncation.edit(net, example, chosen, 0.0),)
        return (skips.edit({skip.name: 0.0 for skip in chosen}),)


def _third(found: Sequence[skips.Skip]) -> tuple[skips.Skip, ...]:
    """The skip connections that the released code removes by mistake."""
    third = [skip for skip in found if skip.block.rpartition(".")[0] == THIRD]
    if not third:
        raise ConfigError(f"expected a ResNet with a {THIRD} for parity, got a network without; set parity=false")
    return tuple(third[max(1, int(SPLIT * len(third))) :])
