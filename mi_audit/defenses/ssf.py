"""SSF: scale the skip connections of the last stage down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from mi_audit.core.defense import MASKING, Defense, Edit, Phase, Slot
from mi_audit.core.errors import ConfigError
from mi_audit.core.paper import Paper
from mi_audit.nn import skips, skips_phases, skips_truncation

ADDITIVE, DENSE = 0.2, 0.01
FULL = "full-skips"


@dataclass(frozen=True, kw_only=True)
class SSF(Defense):
    """Train a network whose last blocks with skip connections compute `g(z) + k S(z)` with `k` below 1.

    With a batch norm at the end of every branch (ResNet), every `k > 0` can represent the same functions: block j
    scales its last norm by `k^j`, and the head undoes it. There the defense steers the training and restricts nothing;
    `rolss` does.

    Attributes:
        k: What the shortcuts of the last stage are multiplied by, from 0 to below 1; None takes the published 0.2 for
            adds and 0.01, the share of channels carried over, for dense blocks.
        learnable: Let every factor learn within (0, 1) from `k` on, as the project page has it; not in dense blocks.
            Weight decay draws it towards one half.
        dense_mode: In dense blocks `mask` sets what is not carried over to zero; `truncate` cuts it off as the released
            code does, so that public weights of the block no longer fit and the head sees few numbers.
        tts: Epochs at the beginning that are trained with all skip connections whole. Phases of other defenses before
            them have whole skip connections, too.

    Raises:
        ConfigError: A setting is out of range, or the network has no skip connections.
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
        "forward through the defended network, backward as if every factor were 1 (BPDA); attack a student with all "
        "skip connections that was distilled from this model"
    )
    caution: ClassVar = MASKING
    slots: ClassVar = frozenset({Slot.SURGERY, Slot.PHASE})
    deviations: ClassVar[tuple[str, ...]] = (
        "The project page calls the factor learnable; the released code keeps it constant, and so do we unless "
        "`learnable` is set.",
        "The released ResNets also lack skip connections at the end of the third stage; these do not.",
        "In DenseNets the channels that are not carried over become zero instead of being cut off, so that public "
        "weights still fit; `dense_mode=truncate` cuts them off.",
    )
    excludes: ClassVar[Mapping[str, str]] = {"tts": "it removes the skip connections that ssf scales; set ssf.tts"}

    k: float | None = None
    learnable: bool = False
    dense_mode: Literal["mask", "truncate"] = "mask"
    tts: int = 0

    def __post_init__(self) -> None:
        if self.k is not None and not 0 <= self.k < 1:
            raise ConfigError(f"expected 0 <= k < 1, got {self.k}; 1 would change nothing")
        if self.tts < 0:
            raise ConfigError(f"expected tts >= 0 epochs, got {self.tts}; 0 trains with scaled skip connections only")
        if self.learnable and self.k == 0:
            raise ConfigError("expected k > 0 for a factor that learns, got 0; leave k or learnable out")
        if self.dense_mode == "truncate" and (self.tts or self.learnable):
            raise ConfigError(
                "expected channels that are cut off for good, got dense_mode=truncate with tts or learnable; take mask"
            )

    def conflicts(self, others: Mapping[str, Defense]) -> str:
        """A factor that learns is in no layer whose gradient is known per image."""
        private = [name for name, other in others.items() if Slot.STEP in other.slots]
        if not private or not self.learnable:
            return ""
        return f"expected constant factors with {private[0]}, got ssf.learnable=true; leave it out"

    def edits(self, net: nn.Module, example: Tensor) -> Sequence[Edit]:
        chosen = skips.last_stage(skips.find(net, example))
        if self.dense_mode == "truncate":
            return (skips_truncation.edit(net, example, chosen, DENSE if self.k is None else self.k),)
        factors = {skip.name: self._factor(skip) for skip in chosen}
        return (skips.edit(factors, idle_projections=self.tts > 0 and self.k == 0, learnable=self.learnable),)

    def phases(self) -> Sequence[Phase]:
        return (Phase(name=FULL, when="before", epochs=self.tts, keep="last"),) if self.tts else ()

    def enter(self, model: nn.Module, phase: str) -> None:
        if self.tts:
            skips_phases.begin(model, phase, last_full=FULL)

    def _factor(self, skip: skips.Skip) -> float:
        if self.k is not None:
            return self.k
        return DENSE if skip.kind == "dense" else ADDITIVE
