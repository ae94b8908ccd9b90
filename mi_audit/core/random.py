"""Random numbers that belong to a sample, not to a batch.

Each (class, restart) owns a key. A draw is a pure function of the key, the name of the draw and the step, so a result
does not depend on which samples share a batch, in how many chunks a run is cut, or where it was resumed. The generator
is the SplitMix64 finaliser over a counter (Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014); integers wrap the same way on every device.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mi_audit.core.types import Labels

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # the SplitMix64 increment, as a signed 64-bit integer
STEP = 0xD1342543DE82EF95 - (1 << 64)  # an odd multiplier that keeps the steps of one draw apart
FIRST, SECOND = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)  # the SplitMix64 multipliers
LOW = {bits: (1 << (64 - bits)) - 1 for bits in (27, 30, 31, 40)}  # what `>>` leaves but copies of the sign


@dataclass(frozen=True, slots=True)
class Streams:
    """One random stream per row; every method is deterministic and has no state.

    The `step` of a draw is one number for all rows, or one number per row.

    Attributes:
        keys: One 64-bit key per row.
    """

    keys: Int64[Tensor, " b"]

    @classmethod
    def of(cls, seed: int, labels: Labels, restarts: Labels) -> "Streams":
        """The streams of the pairs (label, restart) under `seed`."""
        keys = torch.full_like(labels, _signed(seed), dtype=torch.int64)
        for column in (labels, restarts):
            keys = _mix(keys + GOLDEN * (column.to(torch.int64) + 1))
        return cls(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Tensor | slice) -> "Streams":
        return Streams(self.keys[rows])

    def branches(self, count: int) -> "Streams":
        """`count` new streams for every row, those of one row side by side; a single one is the row's own."""
        if count == 1:
            return self
        numbers = torch.arange(1, count + 1, device=self.keys.device)
        return Streams(_mix(self.keys[:, None] + _hash("branch") + GOLDEN * numbers).flatten())

    def uniform(self, name: str, *shape: int, step: int | Labels = 0) -> Float[Tensor, "b *shape"]:
        """Uniform numbers in [0, 1) with 24 bits, `shape` of them per row."""
        return self._bits(name, shape, step) * 2.0**-24

    def normal(self, name: str, *shape: int, step: int | Labels = 0) -> Float[Tensor, "b *shape"]:
        """Standard normal numbers by the Box-Muller transform; their magnitude stays below 5.9."""
        radius = (-2 * torch.log((self._bits(name + "/radius", shape, step) + 0.5) * 2.0**-24)).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(name + "/angle", *shape, step=step))

    def _bits(self, name: str, shape: tuple[int, ...], step: int | Labels) -> Float[Tensor, "b *shape"]:
        offset = STEP * (step + 1)  # one integer, or one per row
        draw = _mix(self.keys + _hash(name) + (offset if isinstance(offset, Tensor) else _signed(offset)))
        counter = torch.arange(1, math.prod(shape) + 1, device=self.keys.device)
        mixed = _mix(draw[:, None] + GOLDEN * counter[None, :])
        return (mixed >> 40 & LOW[40]).to(torch.float32).view(len(self.keys), *shape)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)


def _mix(x: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    x = (x ^ (x >> 30 & LOW[30])) * FIRST
    x = (x ^ (x >> 27 & LOW[27])) * SECOND
    return x ^ (x >> 31 & LOW[31])
