"""What a sweep over one setting of a defense returns: plain frozen data, without tensors."""

from dataclasses import dataclass
from typing import Literal

from mi_audit.core.quantity import Quantity
from mi_audit.core.verdict import Outcome

SWEEP_SCHEMA = "1.0.0"  # additive changes raise the second figure, others the first

Place = Literal["front", "noise", "dominated", "unmeasured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """One model of a sweep, or one per seed: what it is good for and what it leaks.

    Attributes:
        accuracy: Top-1 on the private test images.
        attack: Name of the attack with the highest attack accuracy; empty when none was measured.
        attack_accuracy: What that attack reached.
        exposure: Share of identities that any attack exposed; None when it was not verified.
    """

    accuracy: Quantity
    attack: str
    attack_accuracy: Quantity
    exposure: Quantity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """The defended model at one value, beside its undefended twin.

    Attributes:
        value: As the user wrote it.
        folder: Run folder, relative to the sweep's.
        worth: Of the defended model.
        twin: Index into `Sweep.twins`.
        accuracy_change, attack_change, exposure_change: Defended minus twin, paired by class and seed; attack accuracy
            is that of the strongest attack on either side.
        place: `front` when no other model is better in one of accuracy and attack accuracy and no worse in the other;
            `noise` when one is, but by less than the intervals can tell; `dominated` when it is beyond them;
            `unmeasured` without both numbers.
        verdict: Of the gate on this value; None without rules.
        failed: Jobs that failed.
    """

    value: str
    folder: str
    worth: Worth
    twin: int
    accuracy_change: Quantity
    attack_change: Quantity
    exposure_change: Quantity | None
    place: Place
    verdict: Outcome | None
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinPoint:
    """An undefended twin and the values it was compared with: one for all, unless the setting changes its training."""

    values: tuple[str, ...]
    worth: Worth
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFailure:
    """A value that could not be run; the others went on."""

    value: str
    folder: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Which value to take, and why.

    Attributes:
        value: The recommended one; None when the measurements do not justify any.
        tied: Others that leak no less and no more than it as far as the intervals can tell.
        tolerance: Largest loss of test accuracy against the twin, a share.
        why: One or two sentences.
    """

    value: str | None
    tied: tuple[str, ...]
    tolerance: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Utility against leakage over the values of one setting. Holds no clock time: the same sweep gives the same bytes.

    Attributes:
        parameter: The setting, such as `freeze` or `bido.lambda_x`.
        method: Of the defense.
        values: All of them, in the order given.
        points: Those that ran, in the same order.
        twins: Different undefended twins.
        failures: Those that did not run.
        warnings: What to know before trusting a number, once each.
    """

    schema_version: str = SWEEP_SCHEMA
    kind: Literal["sweep"] = "sweep"
    command: str
    parameter: str
    method: str
    values: tuple[str, ...]
    points: tuple[SweepPoint, ...]
    twins: tuple[TwinPoint, ...]
    failures: tuple[SweepFailure, ...]
    advice: Advice
    warnings: tuple[str, ...] = ()
