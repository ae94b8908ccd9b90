"""Rows of a gradient search on their way, which can be parted between any two steps."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mi_audit.core.random import Streams
from mi_audit.core.types import Labels, Latents
from mi_audit.nn.optimisers import State


@dataclass(slots=True)
class Path:
    """All that the next step of some rows needs.

    Attributes:
        rows: Their places in the chunk, on the CPU.
        start, latents: Where they started and where they are.
        labels, streams, state: Of each row, and what the optimiser remembers of it.
        losses: Identity loss before every step that was taken.
        step: Steps taken.
        end: The step after which rows that have converged are over; None while they have not.
    """

    rows: Int64[Tensor, " rows"]
    start: Latents
    latents: Latents
    labels: Labels
    streams: Streams
    state: State
    losses: Float[Tensor, "steps rows"]
    step: int = 0
    end: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def parted(self) -> "tuple[Path, Path]":
        """The first and the second half of the rows, each where it is now."""
        middle = len(self.rows) // 2
        first, second = (self._part(part) for part in (slice(None, middle), slice(middle, None)))
        return first, second

    def parted_by(self, over: Bool[Tensor, " rows"]) -> "tuple[Path, Path]":
        """The rows that are `over`, and those that go on."""
        ended, others = (self._part(part.nonzero().squeeze(1)) for part in (over, ~over))
        return ended, others

    def _part(self, rows: slice | Tensor) -> "Path":
        return Path(
            self.rows[rows], self.start[rows], self.latents[rows], self.labels[rows], self.streams[rows],
            tuple(memory[rows] for memory in self.state), self.losses[:, rows], self.step, self.end,
        )  # fmt: skip
