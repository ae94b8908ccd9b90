"""What an attack borrows from the machine."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mi_audit.core.arithmetic import Arithmetic, Decision
from mi_audit.core.early_stop import EarlyStop, Taken
from mi_audit.core.errors import ConfigError, OutOfMemory
from mi_audit.core.random import Streams
from mi_audit.core.types import Labels

Result = TypeVar("Result")
SIGNS = ("can't allocate memory", "MPS backend out of memory", "_STATUS_ALLOC_FAILED")  # CPU, mps, cuBLAS and cuDNN


@runtime_checkable
class Rows(Protocol):
    """Anything that can be cut along its first axis: a tensor, `Streams`, a `range`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...  # noqa: ANN401


ViewKind = Literal["paa", "taa", "erase"]
LEAST_VIEWS = 20  # defended models were attacked with 20 to 50 views; a randomised target needs 20 passes
ANSWERS: dict[ViewKind, tuple[str, ...]] = {
    # MID where it answers with noise: every view draws it anew. AT-AT plants features two hundred times finer than the
    # noise of these views, which averages them away.
    "paa": ("atat", "mid"),
    # AlignMI, Table 8, has measured the first two. DP-SGD has no gap of its own: the strongest plain attack is the one.
    "taa": ("bido", "tldmi", "dp-sgd", "mid"),
    "erase": ("midre", "mid"),  # what the model was trained to see through
}


@dataclass(frozen=True, slots=True)
class Averaging:
    """At every gradient step, average the identity loss over random views of each image (AlignMI, NeurIPS 2025).

    Attributes:
        kind: `paa` adds noise, `taa` crops and turns, `erase` fills squares as the defense MIDRE does.
        count: Views per image and step, at least 2.

    Raises:
        ConfigError: There are fewer than two views.
    """

    kind: ViewKind
    count: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ConfigError(f"expected at least 2 views to average, got {self.count}; 1 switches averaging off")

    @property
    def adaptive_to(self) -> tuple[str, ...]:
        """Defenses that it is the known answer to, by command-line name; with too few views none."""
        return ANSWERS[self.kind] if self.count >= LEAST_VIEWS else ()


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
        averaging: Views that gradient searches average their identity loss over; None shows the target each image once.
        queries: Where the target counts its queries, so that those of a chunk that did not fit are not counted twice.
        precision: What the networks of searches are to compute in, where that changes little; all else is exact.
        decisions: What was decided about it, search by search; empty in single precision.
        early_stop: When a latent leaves a gradient search before its last step; None never.
        taken: Rows by the steps they took; empty without `early_stop`.
        halving: Rank candidates in rounds, and drop the worse ones before all views of the ranking were seen.
    """

    seed: int = 0
    batch_size: int = 64
    on_step: Callable[[str, int, int], None] = _silent
    work: Counter[str] = field(default_factory=Counter)
    averaging: Averaging | None = None
    queries: Counter[Any] = field(default_factory=Counter)
    precision: Arithmetic = "32"
    decisions: list[Decision] = field(default_factory=list)
    early_stop: EarlyStop | None = None
    taken: Counter[Taken] = field(default_factory=Counter)
    halving: bool = False

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
        while the results of the finished chunks are kept. What the failed try counted as work and queries is forgotten,
        so that the counts do not depend on the memory either.

        Raises:
            OutOfMemory: A single row does not fit.
        """
        results: list[Result] = []
        start, size, rows = 0, self.batch_size, len(columns[0])
        while start < rows:
            counted = self.counted()
            try:
                results.append(function(*(column[start : start + size] for column in columns)))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                tried = min(size, rows - start)
                if tried == 1:
                    raise OutOfMemory(
                        "expected one image to fit the device, got out of memory; use another device or smaller images"
                    ) from error
                size = tried // 2
                self.forget_since(counted)
                continue
            start += size
        return results

    def counted(self) -> tuple[Counter[str], Counter[Any]]:
        """What was counted as work and queries so far."""
        return self.work.copy(), self.queries.copy()

    def forget_since(self, counted: tuple[Counter[str], Counter[Any]]) -> None:
        """Count nothing of what was done since `counted`, because it failed and is done again."""
        for counter, before in zip((self.work, self.queries), counted, strict=True):
            counter.clear()
            counter.update(before)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the memory of this machine, had no room left."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)
