"""Who was exposed: one yes, no or unknown per identity, the worst over attacks and seeds."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mi_audit.audit.classes import select_classes
from mi_audit.core.report import AttackResult, AuditReport

NAME = "exposure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """Identities that were attempted, by label.

    Attributes:
        attempted: All of them, in the random order in which a sequential test looks at them.
        exposed: Verified in at least one attack under at least one seed.
        unknown: Not seen exposed, and at least one attack gave no value for them.
    """

    attempted: tuple[int, ...]
    exposed: frozenset[int]
    unknown: frozenset[int]

    @property
    def worst(self) -> int:
        """How many are exposed when every unknown one is."""
        return len(self.exposed) + len(self.unknown)


def exposed_by_attacks(report: AuditReport) -> Identities:
    """The union over the attacks: the worst attack of each identity counts (mean of max)."""
    return exposed_by(report.without_controls, report)


def exposed_by_controls(report: AuditReport) -> dict[str, Identities]:
    """The identities that each kind of control without a leak exposes; only controls that measured it or failed.

    A control that failed, wholly or partly, leaves the people unknown for whom it has no value.
    The worst over the attacks counts, as it does for the attacks themselves: a judge who errs once in a hundred
    pictures errs more often on the best of several attacks, on both sides of the comparison.
    """
    measured = [a for a in report.attacks if a.floor and (is_measured(a) or a.failed)]
    kinds = dict.fromkeys(_kind(one) for one in measured)
    return {kind: exposed_by([one for one in measured if _kind(one) == kind], report) for kind in kinds}


def _kind(control: AttackResult) -> str:
    """`control:untrained` of `control:untrained:gmi`."""
    return ":".join(control.name.split(":")[:2])


def is_measured(attack: AttackResult) -> bool:
    """Whether exposure has a value for this attack."""
    found = attack.measurement(NAME)
    return found is not None and found.value is not None


def exposed_by(attacks: Sequence[AttackResult], report: AuditReport) -> Identities:
    """The identities that `attacks` expose together."""
    exposed: set[int] = set()
    complete = set(report.attacked)
    for attack in attacks:
        found = attack.measurement(NAME)
        rows = {(row.label, row.seed): row.value for row in found.per_class} if found else {}
        exposed |= {label for (label, _), value in rows.items() if value > 0}
        complete &= {label for label in complete if all((label, seed) in rows for seed in attack.seeds)}
    order = drawing_order(report.attacked, report.targets[0].sha256)
    known = frozenset(exposed) & frozenset(order)
    return Identities(attempted=order, exposed=known, unknown=frozenset(order) - known - complete)


def drawn_at_random(report: AuditReport) -> bool:
    """Whether the attacked classes are all there are, or those that `random:N` draws for these data and this seed.

    A run that stopped early has to have attacked the first ones of such a set, in the order of the draw.
    """
    planned = report.planned or report.attacked
    if report.attacked != tuple(sorted(drawing_order(planned, report.targets[0].sha256)[: len(report.attacked)])):
        return False
    if len(planned) == len(report.classes):
        return True
    seeds = {attack.seeds[0] for attack in report.attacks if attack.seeds}
    spec, total = f"random:{len(planned)}", len(report.classes)
    return any(planned == select_classes(spec, total, f"{report.private.fingerprint}/{s}") for s in seeds)


def drawing_order(labels: Sequence[int], model: str) -> tuple[int, ...]:
    """The order in which a sequential test looks at `labels`: nobody can pick it, it follows from the weights' hash."""
    return tuple(sorted(labels, key=lambda label: hashlib.sha256(f"{model}/{label}".encode()).hexdigest()))
