"""Waivers: who answers for a rule that fails. They excuse one rule, for one set of weights, up to one day."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from mi_audit.audit.plan import WaiverPlan
from mi_audit.core.report import AuditReport, Outcome, RuleResult, Waiver

APPLIED = "applied"
REGISTRIES = ("hf-hub:", "timm:", "torchvision:", "built-in:", "py:")  # models that lie in no folder of the user's


def settle(
    waivers: Sequence[WaiverPlan], rules: Sequence[RuleResult], report: AuditReport, today: date | None = None
) -> tuple[Waiver, ...]:
    """Every waiver with what became of it, in the order given.

    Args:
        waivers: As read from the settings.
        rules: As judged.
        report: The audit that was judged; of several targets, a rule is excused when all of them are.
        today: None is today's date in UTC.
    """
    day = today or datetime.now(UTC).date()
    outcomes = {rule.id: rule.outcome for rule in rules}
    weights = {target.sha256 for target in report.targets}
    valid = {w: _objection(w, outcomes, weights, report, day) for w in waivers}
    covered = {w.id: {v.model_sha256 for v, why in valid.items() if not why and v.id == w.id} for w in waivers}
    return tuple(
        Waiver(
            id=waiver.id,
            model_sha256=waiver.model_sha256,
            expires=waiver.expires.isoformat(),
            reason=waiver.reason,
            applied=not why and weights <= covered[waiver.id],
            status=why or (APPLIED if weights <= covered[waiver.id] else "not all models of this audit are waived"),
        )
        for waiver, why in valid.items()
    )


def _objection(
    waiver: WaiverPlan, outcomes: Mapping[str, Outcome], weights: set[str], report: AuditReport, day: date
) -> str:
    """Why a waiver does nothing; empty when it may take effect."""
    if waiver.source and any(_beside(waiver.source, target.ref) for target in report.targets):
        return f"it was read from the folder of the model, {waiver.source}: a model cannot excuse itself"
    if waiver.id not in outcomes:
        return "no rule of that id was judged"
    if waiver.model_sha256 not in weights:
        return "it is for other weights"
    if waiver.expires < day:
        return f"it expired on {waiver.expires.isoformat()}"
    if outcomes[waiver.id] != "FAIL":
        return f"not needed: the rule is {outcomes[waiver.id]}"
    return ""


def _beside(source: str, model: str) -> bool:
    """Whether the settings lie in the folder of the model, or anywhere in the model when it is a folder.

    A relative reference was written as seen from the folder of the audit. Where it leads nowhere from here, names are
    compared: something called like the model lies beside the settings, or they lie in a folder of its path.
    """
    if model.startswith(REGISTRIES):
        return False
    written = Path(model.removeprefix("local-dir:")).expanduser()
    settings = Path(source).expanduser().resolve()
    if not written.exists():
        named = tuple(part for part in written.parts if part not in ("..", written.anchor))
        inside = any(folder.parts[-len(named) :] == named for folder in settings.parents) if named else True
        return inside or (settings.parent / written.name).exists()
    path = written.resolve()
    return settings.is_relative_to(path) or (path.is_file() and settings.parent == path.parent)
