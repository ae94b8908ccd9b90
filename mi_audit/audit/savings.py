"""What a run may leave out on request, and how much it did: latents that have converged, views of bad candidates."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mi_audit.audit.plan import Plan
from mi_audit.core.attack import Attack
from mi_audit.core.early_stop import EarlyStop, Taken
from mi_audit.core.report import StepFacts
from mi_audit.core.run import Run
from mi_audit.core.target import Access
from mi_audit.nn.halving import ROUNDS

Saving = Literal["early_stop", "halving"]
LIMITS: Mapping[Saving, str] = {
    "early_stop": "Latents left the searches of white-box attacks (--early-stop) when their loss on the target had all "
    "but ceased to fall. An evaluator, which that loss does not know, may have accepted more of them after all "
    "steps: an attack that stops early can look weaker than it is. The steps that were saved stand beside each attack.",
    "halving": "Candidates were ranked in rounds (--halving): one that would have been among the best under all views "
    "may have been dropped after a part of them.",
}


@dataclass(frozen=True, slots=True)
class Savings:
    """What the attacks of one contender may leave out.

    Attributes:
        early_stop: When latents leave a search; None never.
        halving: Rank candidates in rounds.
    """

    early_stop: EarlyStop | None = None
    halving: bool = False

    @property
    def settings(self) -> dict[str, object]:
        """As they go into the report and into the id of a job; nothing when nothing is left out."""
        early = {f"early_stop_{name}": value for name, value in asdict(self.early_stop or EarlyStop()).items()}
        halving: dict[str, object] = {"halving": [list(part) for part in ROUNDS]}
        return (early if self.early_stop else {}) | (halving if self.halving else {})

    def granted(self, run: Run) -> Run:
        """The same run, in which that may be left out."""
        return replace(run, early_stop=self.early_stop, halving=self.halving)


def open_to(attack: Attack[Any, Any]) -> frozenset[Saving]:
    """What `attack` has any use for: white-box attacks follow gradients, and some rank what those led to."""
    white = attack.threat_model()[0].access == Access.WHITE_BOX
    return frozenset(name for name, use in (("early_stop", white), ("halving", attack.ranks)) if use)  # type: ignore[misc]


def savings_of(plan: Plan, uses: frozenset[Saving]) -> Savings:
    """What `plan` wants left out, of that which an attack has any use for."""
    early = EarlyStop() if plan.early_stop and "early_stop" in uses else None
    return Savings(early, plan.halving and "halving" in uses)


def limits(plan: Plan) -> tuple[str, ...]:
    """What a result cannot tell because something was left out."""
    return tuple(text for name, text in LIMITS.items() if getattr(plan, name))


def without_effect(plan: Plan, attacks: Iterable[Attack[Any, Any]]) -> tuple[str, ...]:
    """Warnings of what no attack of the run has any use for."""
    uses = frozenset[Saving]().union(*(open_to(attack) for attack in attacks))
    kinds = {"early_stop": "is white-box", "halving": "ranks its candidates by random views"}
    return tuple(
        f"--{name.replace('_', '-')} changed nothing: no attack of this run {kinds[name]}"
        for name in LIMITS
        if getattr(plan, name) and name not in uses
    )


def taken_facts(taken: Mapping[Taken, int]) -> list[dict[str, object]]:
    """The ledger of a job as plain data: rows by stage and steps."""
    return [asdict(key) | {"rows": rows} for key, rows in taken.items()]


def step_facts(ledgers: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[StepFacts, ...]:
    """The steps of all jobs of an attack together, stage by stage, in the order in which they were taken."""
    stages: dict[tuple[str, int, str], Counter[int]] = {}
    for ledger in ledgers:
        for entry in ledger:
            stages.setdefault((entry["stage"], entry["asked"], entry["whole"]), Counter())[entry["taken"]] += entry[
                "rows"
            ]
    return tuple(_of_stage(*key, rows) for key, rows in stages.items())


def _of_stage(stage: str, asked: int, whole: str, rows: Counter[int]) -> StepFacts:
    total = rows.total()
    return StepFacts(
        stage=stage,
        asked=asked,
        rows=total,
        stopped=1 - rows[asked] / total,
        mean=sum(steps * count for steps, count in rows.items()) / total,
        median=_median(rows),
        note=whole,
    )


def _median(rows: Counter[int]) -> float:
    """The middle of all steps, each as often as there were rows."""
    ordered = sorted(rows.elements())
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
