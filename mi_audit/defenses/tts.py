"""TTS: train a few epochs with all skip connections, then remove those of the last stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from mi_audit.core.defense import MASKING, Defense, Edit, Phase, Slot
from mi_audit.core.errors import ConfigError
from mi_audit.core.paper import Paper
from mi_audit.nn import skips, skips_phases

FULL = "full-skips"


@dataclass(frozen=True, kw_only=True)
class TTS(Defense):
    """Two-stage training: the network without its last skip connections starts from weights trained with them.

    What is removed, and from then on trained and released, is the network of `rolss`. The weights of removed
    projections are wiped and stay in the file as zeros, because one file format must serve both stages.

    Attributes:
        full_epochs: Epochs with all skip connections, out of those of the whole training. Phases of other defenses
            before them have all skip connections, too.
        keep_projection: Remove identity shortcuts only, not those that change the shape.

    Raises:
        ConfigError: `full_epochs` is below 1, or the network has no skip connections.
    """

    paper: ClassVar = Paper(
        title="On the Vulnerability of Skip Connections to Model Inversion Attacks",
        authors="Koh et al.",
        venue="ECCV 2024",
        url="https://arxiv.org/abs/2409.01696",
    )
    smoke: ClassVar = {"full_epochs": 1}
    # what it takes from the attacker is a path of the gradient; that the weights hold less is not shown
    kind: ClassVar[str] = "gradient-masking"
    adaptive: ClassVar[str] = (
        "forward through the defended network, backward as if every removed skip connection were there (BPDA); attack "
        "a student with all skip connections that was distilled from this model"
    )
    caution: ClassVar = MASKING
    slots: ClassVar = frozenset({Slot.SURGERY, Slot.PHASE})
    deviations: ClassVar[tuple[str, ...]] = (
        "The weights of removed projections are set to zero at the switch; the released code leaves them in the file "
        "as they were trained.",
        "The released ResNets also lack skip connections at the end of the third stage, in both stages of the "
        "training; these do not.",
        "Stochastic depth of the removed adds is on in the first stage only, for a dropped branch without a shortcut "
        "would leave nothing.",
    )

    full_epochs: int = 5
    keep_projection: bool = False

    def __post_init__(self) -> None:
        if self.full_epochs < 1:
            raise ConfigError(f"expected full_epochs >= 1, got {self.full_epochs}; without them the method is rolss")

    def edits(self, net: nn.Module, example: Tensor) -> Sequence[Edit]:
        chosen = skips.last_stage(skips.find(net, example), projections=not self.keep_projection)
        return (skips.edit({skip.name: 0.0 for skip in chosen}, idle_projections=True),)

    def phases(self) -> Sequence[Phase]:
        return (Phase(name=FULL, when="before", epochs=self.full_epochs, keep="last"),)

    def enter(self, model: nn.Module, phase: str) -> None:
        skips_phases.begin(model, phase, last_full=FULL)
