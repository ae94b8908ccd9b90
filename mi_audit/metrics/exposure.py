"""Exposure: the share of people whom an independent verifier recognises in the attacker's surest picture of them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import ClassValue, Interval, Measurement
from mi_audit.nn.intervals import by_class, clopper_pearson

JUDGED = "exposure/identity/sel1/target-conf"


@dataclass(frozen=True, kw_only=True)
class Exposure(Metric):
    """`mean over identities c of 1[the verifier accepts the surest reconstruction of c as c]`.

    Only one picture of each class and seed counts: the one the attacker is surest of, by the target's outputs; with an
    imperfect judge "any of m" would be true of nearly everybody. `exposure` compares with photographs that nobody
    trained on, so that it measures whether the person leaked and not a photograph; `exposure_train` with as many
    training photographs. `type1_gap` is the share of identities whose surest picture the evaluator takes for the
    person and the verifier does not: pictures that convince classifiers without resembling anybody.

    A class that the verifier has no held-out photograph of is left out. The interval is exact over identities.
    """

    names: ClassVar = ("exposure", "exposure_train", "type1_gap")
    unit: ClassVar = "share"
    summary: ClassVar = "share of people whom an independent verifier recognises in the attacker's surest picture"

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        missing, verify = _missing(evidence), evidence.verify
        if missing or verify is None:
            return tuple(_unmeasured(name, missing, verify.name if verify else "none") for name in self.names)
        rows = surest(evidence)
        rows = rows[torch.isin(evidence.labels[rows], verify.classes)]
        pixels, labels, seeds = evidence.pixels[rows], evidence.labels[rows], evidence.seeds[rows]
        shown = verify.held_out(pixels, labels)
        fooled = (evidence.logits[rows].argmax(dim=1) == labels).to(shown.device) & ~shown
        found = (shown, verify.train(pixels, labels), fooled)
        return tuple(
            _measured(name, verify.name, hits, labels, seeds) for name, hits in zip(self.names, found, strict=True)
        )


def surest(evidence: Evidence) -> Int[Tensor, " m"]:
    """Row of the reconstruction of each (class, seed) that the attacker is surest of; the first of equals."""
    assert evidence.confidence is not None
    labels, seeds = evidence.labels.cpu().numpy(), evidence.seeds.cpu().numpy()
    order = np.lexsort((-evidence.confidence.cpu().double().numpy(), seeds, labels))
    _, first = np.unique(np.stack([labels, seeds])[:, order], axis=1, return_index=True)
    return torch.from_numpy(order[first])


def _missing(evidence: Evidence) -> str:
    """Why exposure cannot be measured; empty when it can."""
    if evidence.verify is None:
        return evidence.unverified
    if evidence.confidence is None:
        return "the attacker does not say which reconstruction it is surest of"
    known = torch.isin(evidence.labels, evidence.verify.classes).any()
    return "" if bool(known) else "no attacked class has a held-out photograph to compare with"


def _measured(
    name: str, verifier: str, hits: Bool[Tensor, " m"], labels: Int[Tensor, " m"], seeds: Int[Tensor, " m"]
) -> Measurement:
    rows = by_class(hits.cpu().double().numpy(), labels.cpu().numpy(), seeds.cpu().numpy())
    shares = identity_shares(rows)
    low, high = clopper_pearson(sum(shares), len(shares))
    return Measurement(
        name=name,
        protocol=_protocol(name, verifier),
        value=sum(shares) / len(shares),
        unit="share",
        count=len(shares),
        counted="identities",
        interval=Interval(low=low, high=high, method=f"exact binomial over {len(shares)} identities"),
        leak_grows=_grows(name),
        per_class=rows,
    )


def identity_shares(rows: tuple[ClassValue, ...]) -> list[float]:
    """The share of seeds that exposed each identity, by label."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row.label, []).append(row.value)
    return [sum(values) / len(values) for _, values in sorted(found.items())]


def _unmeasured(name: str, reason: str, verifier: str) -> Measurement:
    return Measurement(
        name=name,
        protocol=_protocol(name, verifier),
        value=None,
        unit="share",
        count=0,
        counted="identities",
        reason=reason,
        leak_grows=_grows(name),
    )


def _grows(name: str) -> bool | None:
    return None if name == "type1_gap" else True


def _protocol(name: str, verifier: str) -> str:
    return f"{name}{JUDGED.removeprefix('exposure')}@{verifier}#audit-v1"
