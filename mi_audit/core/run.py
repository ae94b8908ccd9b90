"""What an attack borrows from the machine."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mi_audit.core.errors import OutOfMemory
from mi_audit.core.random import Streams
from mi_audit.core.types import Labels

Result = TypeVar("Result")


@runtime_checkable
class Rows(Protocol):
    """Anything that can be cut along its first axis: a tensor, `Streams`, a `range`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...  # noqa: ANN401


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


@dataclass(frozen=True, slots=True)
class Run:
    """Randomness, a batch size, a place to report progress, and the ledger of work.

    Attributes:
        seed: Root of every random stream of the run.
        batch_size: Largest number of images decoded at once; results do not depend on it beyond rounding.
        on_step: Called as `on_step(stage, done, total)`; counts are sample-steps of that stage.
        work: Images passed through each network, by name: `generator_forward`, `target_backward`, ...
    """

    seed: int = 0
    batch_size: int = 64
    on_step: Callable[[str, int, int], None] = _silent
    work: Counter[str] = field(default_factory=Counter)

    def streams(self, labels: Labels, restarts: Labels) -> Streams:
        """One random stream per (label, restart)."""
        return Streams.of(self.seed, labels, restarts)

    def map(self, function: Callable[..., Tensor], *columns: Rows) -> Tensor:
        """Apply `function` to aligned chunks of at most `batch_size` rows and concatenate the results.

        Raises:
            OutOfMemory: A single row does not fit.
        """
        return torch.cat(self.batches(function, *columns))

    def batches(self, function: Callable[..., Result], *columns: Rows) -> list[Result]:
        """Apply `function` to aligned chunks of at most `batch_size` rows and list the results in order.

        `function` must depend on nothing but its rows: a chunk that does not fit the memory is halved and run again,
        while the results of the finished chunks are kept.

        Raises:
            OutOfMemory: A single row does not fit.
        """
        results: list[Result] = []
        start, size, rows = 0, self.batch_size, len(columns[0])
        while start < rows:
            try:
                results.append(function(*(column[start : start + size] for column in columns)))
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                tried = min(size, rows - start)
                if tried == 1:
                    raise OutOfMemory(
                        "expected one image to fit the device, got out of memory; use another device or smaller images"
                    ) from error
                size = tried // 2
                continue
            start += size
        return results


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
