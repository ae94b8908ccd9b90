"""What the networks of attacks computed in, in words; nothing is said of single precision that nobody questioned."""

from collections.abc import Mapping

from mi_audit.core.report import AttackResult, AuditReport, Comparison, PrecisionFacts
from mi_audit.report import view, wording


def lines(attack: AttackResult) -> tuple[str, ...]:
    """One sentence per stage of an attack that was asked to use bfloat16."""
    return tuple(_line(stage) for stage in attack.precision)


def notes(result: AuditReport | Comparison) -> tuple[str, ...]:
    """The sentences of all attacks and controls that were asked to."""
    before, after = view.sides(result)
    sides: Mapping[str, AuditReport] = {"Before: ": before, "After: ": after} if before else {"": after}
    return tuple(
        f"{side}{wording.attack_title(attack.name)}, {line}"
        for side, report in sides.items()
        for attack in report.attacks
        for line in lines(attack)
    )


def _line(facts: PrecisionFacts) -> str:
    cosine = ""
    if facts.cosine is not None:
        least, largest = (f"{value:.2f}" for value in facts.cosine)
        cosine = f" (cosine {least})" if least == largest else f" (cosine {least} to {largest})"
    if facts.mixed == facts.searches:
        return f"{facts.stage}: bfloat16{cosine}."
    why = "; ".join(facts.reasons)
    if not facts.mixed:
        return f"{facts.stage}: single precision instead of bfloat16: {why}."
    return f"{facts.stage}: bfloat16 in {facts.mixed} of {facts.searches} searches{cosine}, the others exact: {why}."
