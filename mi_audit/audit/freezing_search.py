"""`--freeze auto`: Fisher information says where to begin, accuracy says how deep, the measured attack decides."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from mi_audit.core.errors import ConfigError

NONE = "none"
VERIFIED_AT = 3  # cuts that must have been tried before accuracy is taken to fall with depth
GRID = 10  # most cuts that are tried when it does not


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A fully trained model.

    Attributes:
        accuracy: On the validation images, a share.
        attack: Attack accuracy of the strongest attack that was run, a share; adaptive where there is one.
    """

    accuracy: float
    attack: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeSearch:
    """How a cut was found; every number is kept, so that the choice can be judged.

    Attributes:
        spec: The outcome, in the grammar of `--freeze`.
        units, total: The same in units, of how many the network has.
        start: Where the search began: k0 of the Fisher profile, or the middle without one.
        deepest: The deepest cut whose short training kept the accuracy.
        delta: Accuracy that may be lost, a share.
        accuracies: Validation accuracy of the short trainings, by units frozen.
        monotone: No deeper cut kept the accuracy where a shallower one had lost it.
        trials: What full training and the attack gave, by units frozen; empty without an attack.
        reason: One sentence.
    """

    spec: str
    units: int
    total: int
    start: int
    deepest: int
    delta: float
    accuracies: dict[int, float]
    monotone: bool
    trials: dict[int, Trial]
    reason: str

    def as_mapping(self) -> dict[str, object]:
        """The record as plain values for a manifest."""
        named = {str(units): value for units, value in sorted(self.accuracies.items())}
        trials = {str(units): asdict(trial) for units, trial in sorted(self.trials.items())}
        return asdict(self) | {"accuracies": named, "trials": trials}


def spec_of(units: int, total: int) -> str:
    """The share of depth that freezes exactly `units` of `total` units, in as few digits as it takes."""
    if not units:
        return NONE
    for digits in range(8):
        percent = math.ceil(100 * units / total * 10**digits - 1e-9) / 10**digits
        if math.floor(round(percent * total / 100, 6)) == units:
            return f"{percent:.{digits}f}%"
    raise ConfigError(f"expected 0 to {total} units, got {units}; choose a cut that exists")


def stage_ends(stages: Sequence[str]) -> tuple[int, ...]:
    """Numbers of units after which a stage ends; every unit is a stage where they lie flat.

    Args:
        stages: Stage of every unit in execution order.
    """
    ends = [place for place, (one, other) in enumerate(pairwise(stages), 1) if one != other]
    return (*ends, len(stages)) if ends else tuple(range(1, len(stages) + 1))


def deepest_cut(total: int, limit: int | None = None) -> int:
    """Most units of `total` that a search may freeze; see `search` for `limit`.

    Raises:
        ConfigError: There is nothing to choose from.
    """
    last = total - 1 if limit is None else min(limit, total - 1)
    if last < 1:
        raise ConfigError(f"expected two units or more to search a cut in, got {last + 1} of {total}; give --freeze")
    return last


def search(
    stages: Sequence[str],
    delta: float,
    val_accuracy: Callable[[str], float],
    start: int | None = None,
    measured: Callable[[str], Trial] | None = None,
    limit: int | None = None,
) -> FreezeSearch:
    """Find a freeze point: accuracy limits the depth, the measured attack chooses among the cuts that are left.

    The short trainings assume that accuracy falls with depth; where three of them say otherwise, cuts over the whole
    depth are tried. Then the deepest cut and those one stage before and behind it are trained in full and attacked; of
    those that keep the accuracy in full training the one with the lowest attack accuracy is taken, the shallower of
    equals. The last unit always learns.

    Args:
        stages: Stage of every unit of the network, in execution order.
        delta: Accuracy that may be lost against no freeze, a share.
        val_accuracy: Trains shortly with the freeze specification given and returns the validation accuracy.
        start: Units to begin at, `FisherReport.profiles[0].cut`; None begins in the middle.
        measured: Trains in full and attacks; None leaves the choice to accuracy alone.
        limit: Most units that may be frozen, where another defense changes those behind; None is all but the last.

    Raises:
        ConfigError: `delta` is no share, there is nothing to choose from, or `start` is not one of the cuts.
    """
    total = len(stages)
    if not 0 <= delta < 1:
        raise ConfigError(f"expected an accuracy loss from 0 to 100 points, got {100 * delta:g}; write auto:2")
    last = deepest_cut(total, limit)
    if start is not None and not 0 <= start <= total:
        raise ConfigError(f"expected a start from 0 to {total} units, got {start}; profile this network again")
    begin = min(max(1, total // 2 if start is None else start), last)
    seen: dict[int, float] = {}

    def keeps(units: int) -> bool:
        for needed in (0, units):
            if needed not in seen:
                seen[needed] = val_accuracy(spec_of(needed, total))
        return seen[units] >= seen[0] - delta

    deepest, monotone = _deepest(begin, last, stage_ends(stages), keeps, seen)
    if measured is None:
        why = f"the deepest cut within {100 * delta:g} points of validation accuracy; no attack was measured"
        chosen, trials = deepest, dict[int, Trial]()
    else:
        chosen, trials, why = _decide(deepest, last, total, stage_ends(stages), delta, measured)
    return FreezeSearch(
        spec=spec_of(chosen, total),
        units=chosen,
        total=total,
        start=begin,
        deepest=deepest,
        delta=delta,
        accuracies=dict(sorted(seen.items())),
        monotone=monotone,
        trials=trials,
        reason=why,
    )


def _deepest(
    begin: int, last: int, ends: Sequence[int], keeps: Callable[[int], bool], seen: dict[int, float]
) -> tuple[int, bool]:
    """The deepest cut that keeps the accuracy, by bisection from `begin`, and whether the trials fell with depth."""
    low, high = (begin, last + 1) if keeps(begin) else (0, begin)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    for check in ((high + last + 1) // 2, (1 + low) // 2, last, 1):  # one behind the cut, one before it, the ends
        if 1 <= check <= last and (check > high or len(seen) <= VERIFIED_AT):
            keeps(check)
    kept = [units for units in seen if units and keeps(units)]
    lost = [units for units in seen if units and not keeps(units)]
    if not kept or not lost or max(kept) < min(lost):
        return max(kept, default=0), True
    grid = [end for end in ends if end <= last]
    for units in grid[:: max(1, math.ceil(len(grid) / GRID))]:
        keeps(units)
    return max(units for units in seen if units and keeps(units)), False


def _decide(
    deepest: int, last: int, total: int, ends: Sequence[int], delta: float, measured: Callable[[str], Trial]
) -> tuple[int, dict[int, Trial], str]:
    """The cut with the lowest attack accuracy among `deepest` and its neighbours a stage away."""
    before = max((end for end in ends if end < deepest), default=0)
    behind = min((end for end in ends if deepest < end <= last), default=deepest)
    trials = {units: measured(spec_of(units, total)) for units in dict.fromkeys((0, before, deepest, behind))}
    floor = trials[0].accuracy - delta
    fit = [units for units in sorted(trials) if units and trials[units].accuracy >= floor]
    if not fit:
        return 0, trials, f"no cut that was trained in full stayed within {100 * delta:g} points of accuracy"
    chosen = min(fit, key=lambda units: trials[units].attack)
    others = ", ".join(f"{trials[units].attack:.1%} at {units}" for units in sorted(trials) if units != chosen)
    why = f"the lowest measured attack accuracy, {trials[chosen].attack:.1%}, of the cuts that keep the accuracy"
    return chosen, trials, f"{why} (else {others})"
