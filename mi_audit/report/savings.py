"""How many steps the searches of an attack took when latents may stop early, in sentences."""

from mi_audit.core.report import AttackResult, AuditReport, Comparison, StepFacts
from mi_audit.report import view, wording


def steps(attack: AttackResult) -> tuple[str, ...]:
    """A sentence per search; none when all steps were to be taken."""
    return tuple(_sentence(facts) for facts in attack.steps)


def sentences(result: AuditReport | Comparison) -> tuple[str, ...]:
    """Those of all attacks, each with the name of the attack in front."""
    before, after = view.sides(result)
    sides = (("", after),) if before is None else (("before, ", before), ("after, ", after))
    return tuple(
        f"{side}{wording.attack_title(attack.name)}, {text}"
        for side, report in sides
        for attack in report.attacks
        for text in steps(attack)
    )


def _sentence(facts: StepFacts) -> str:
    if facts.note:
        return f"search {facts.stage}: all {facts.asked:,} steps, because {facts.note}"
    return (
        f"search {facts.stage}: {facts.mean:,.0f} of {facts.asked:,} steps on average (median {facts.median:,.0f}); "
        f"{facts.stopped:.0%} of {wording.plural(facts.rows, 'latent')} stopped early, which saved "
        f"{1 - facts.mean / facts.asked:.0%} of the steps"
    )
