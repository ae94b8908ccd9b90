"""What the networks of a search compute in, and what was decided about it. Free of torch."""

from dataclasses import dataclass
from typing import Literal

Arithmetic = Literal["32", "bf16"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the networks of one search computed in, after both arithmetics were compared on them.

    Attributes:
        stage: Name of the search in progress and curves; `pool` is the scoring of random latents.
        asked, used: What the run wanted, and what was taken.
        cosine: Median cosine between what both gave; None when something was not finite.
        reason: Why it is not what the run wanted; empty when it is.
    """

    stage: str
    asked: Arithmetic
    used: Arithmetic
    cosine: float | None
    reason: str = ""
