"""What `mi-audit fisher` found: plain frozen data, no tensors, so that it can be shown without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mi_audit.core.quantity import Interval
from mi_audit.core.report import DataFacts, ModelFacts

FISHER_SCHEMA = "1.0.0"
Labelling = Literal["empirical", "true"]
Scale = Literal["mean", "total", "scale-free"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFacts:
    """One row of every profile: a unit of the network in depth order, or the head.

    Attributes:
        name, kind, stage: Of the module; the head has no stage.
        parameters: Number of scalars.
    """

    name: str
    kind: str
    stage: str
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionFacts:
    """The reconstructions that the inversion task was measured on.

    Attributes:
        source: `run` when they were read from an earlier run, `attack` when they were made for this profile.
        run: The run folder they were read from, as the user wrote it; empty otherwise.
        attacks, priors: Names.
        weak: No image prior was behind them, so that they look like nobody.
        moments: Most moments of a search that the pictures of one class come from; 1 is its end only.
        images, identities: Numbers.
        accepted: Share of the final reconstructions that the model assigns to the attacked class; None when unknown.
    """

    source: Literal["run", "attack"]
    run: str
    attacks: tuple[str, ...]
    priors: tuple[str, ...]
    weak: bool
    moments: int
    images: int
    identities: int
    accepted: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitValues:
    """One unit in one profile.

    Attributes:
        fisher_cls, fisher_mi: Fisher information for classification and for inversion, in the scale of the profile.
        share_cls, share_mi: The same as a share of the sum over all units; intervals follow.
        ratio: `share_mi / share_cls`; above 1 the unit matters more for inversion. None where it is 0 / 0 or x / 0.
        cumulative_cls, cumulative_mi: Shares summed up to and including this unit.
        gap: `cumulative_mi - cumulative_cls`: what a freeze up to here takes from inversion beyond classification.
    """

    fisher_cls: float
    fisher_mi: float
    share_cls: float
    share_mi: float
    share_cls_interval: Interval | None
    share_mi_interval: Interval | None
    ratio: float | None
    ratio_interval: Interval | None
    cumulative_cls: float
    cumulative_mi: float
    gap: float
    gap_interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The Fisher information of all units under one definition.

    Attributes:
        labels: `empirical` takes the true (or attacked) labels, `true` those that the model itself would draw.
        scale: `mean` per parameter, `total` of the unit, or `scale-free`: the sum of `theta^2 F`.
        values: One per unit, in the order of `FisherReport.units`.
        cut: The number of units k at which `gap` is largest; 0 when it is nowhere positive.
        cut_interval: Of that number, when identities are drawn again.
    """

    labels: Labelling
    scale: Scale
    values: tuple[UnitValues, ...]
    cut: int
    cut_interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FisherReport:
    """Layer-wise Fisher information of one model for two tasks. Holds no clock time.

    Attributes:
        id: Hash of everything that determines the result.
        samples: Private validation images that the classification task was measured on.
        units: In depth order, the head last.
        profiles: The first is the one shown: empirical, mean per parameter.
        freeze: The cut of the first profile in the grammar of `--freeze`; None when it suggests none.
        cautions: What to know before believing it, in sentences.
    """

    schema_version: str = FISHER_SCHEMA
    kind: Literal["fisher"] = "fisher"
    id: str
    tool: Mapping[str, str]
    device: str
    command: str
    model: ModelFacts
    private: DataFacts
    samples: int
    inversion: InversionFacts
    units: tuple[UnitFacts, ...]
    profiles: tuple[Profile, ...]
    freeze: str | None
    cautions: tuple[str, ...]
