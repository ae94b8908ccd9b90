"""Attack no more people than the gate needs: in the order of the draw, a job at a time, until it decides."""

from collections.abc import Callable, Sequence

from mi_audit.audit.audit_v1 import judge_exposure, settled
from mi_audit.audit.exposed import NAME
from mi_audit.audit.plan import DecisionPlan, Plan
from mi_audit.audit.progress import ProgressSink
from mi_audit.core.report import AuditReport


def stops_early(plan: Plan) -> bool:
    """Whether the gate of the plan looks while the attacks go on, and measures what it looks at."""
    decision = plan.decision
    return decision.policy == "audit-v1" and decision.sequential and (not plan.metrics or NAME in plan.metrics)


def enough_people(
    order: Sequence[int],
    step: int,
    look: Callable[[Sequence[int]], AuditReport],
    decision: DecisionPlan,
    progress: ProgressSink,
) -> tuple[int, ...]:
    """The shortest beginning of `order`, in steps of `step` people, on which the gate decides; all when none does.

    The bounds hold however often one looks, so the error rate of the gate is the same as without stopping.

    Args:
        order: Labels in the order of the draw.
        step: People between two looks.
        look: Attacks the given people, keeping what was done for the ones before, and measures their exposure.
        decision: What decides.
        progress: Told after every look.
    """
    for seen in range(step, len(order), step):
        report = look(order[:seen])
        exposure = judge_exposure(report, decision)[1]
        stop = settled(report, decision)
        if exposure is not None:
            told = f"{exposure.exposed} exposed, bounds {exposure.lower:.1%} to {exposure.upper:.1%}"
            ending = f"decided, {len(order) - seen} need no attack" if stop else "not decided yet"
            progress.note(f"{seen} of {len(order)} people: {told}, limit {decision.tau:.1%}: {ending}")
        if stop:
            return tuple(order[:seen])
    return tuple(order)
