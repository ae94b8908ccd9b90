"""MIDRE: never show the model a whole image, by erasing a random square of every training image."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mi_audit.core.defense import Defense, Moment, Slot
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.types import Images, Labels
from mi_audit.nn.erasing import HIGH, LOW, Fill, colour_of, erase


@dataclass(frozen=True, kw_only=True)
class MIDRE(Defense):
    """Fill one square of every training image with one colour, in every phase; the loss and the model stay as they are.

    The erased share of the area is uniform between `low` and `high`, its place uniform over all that fit. What the
    model never sees whole it cannot give back whole. Images that the model is tested with are not touched.

    Attributes:
        low, high: Smallest and largest erased share of the area; the paper tries high = 0.4 and 0.8.
        fill: `paper` is the light grey of the released code, `neutral` middle grey.

    Raises:
        ConfigError: The shares are out of range or in the wrong order.
    """

    paper: ClassVar = Paper(
        title="Random Erasing vs. Model Inversion: A Promising Defense or a False Hope?",
        authors="Tran et al.",
        venue="TMLR 2025",
        url="https://arxiv.org/abs/2409.01062",
    )
    smoke: ClassVar = {}
    kind: ClassVar = "data"
    adaptive: ClassVar = "erase random squares of the attacked image, too, and average the gradients over them"
    slots: ClassVar = frozenset({Slot.DATA})
    deviations: ClassVar = ("Grey images are filled with the luminance of the colour.",)

    low: float = LOW
    high: float = HIGH
    fill: Fill = "paper"

    def __post_init__(self) -> None:
        require_finite(self)
        if not 0 < self.low <= self.high < 1:
            raise ConfigError(
                f"expected 0 < low <= high < 1, got {self.low}, {self.high}; set for example midre.high=0.4"
            )

    def transform(self, images: Images, labels: Labels, moment: Moment) -> Images:
        del labels
        uniform = torch.rand(len(images), 3, generator=moment.rng).to(images.device)
        return erase(images, uniform, self.low, self.high, colour_of(images, self.fill))
