"""Exposure before and after, paired by identity: exact, because few identities change sides."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mi_audit.audit.bounds import Case
from mi_audit.audit.exposed import NAME, Identities, exposed_by, is_measured
from mi_audit.audit.gate import REGRESSION
from mi_audit.audit.plan import DecisionPlan
from mi_audit.core.report import AttackResult, AuditReport, Change, Interval, Outcome, Quantity, RuleResult
from mi_audit.nn import exact

RULE = REGRESSION
ALL = "all attacks"
LEVEL = 0.05  # of the two-sided test behind the meaning of a change, and of the interval
DIRECTION = 0.04  # of it, what the interval spends on the direction; the rest goes to how many changed sides


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Identities known in both audits: how many there are, and how many are exposed in one of them only."""

    count: int
    only_before: int
    only_after: int


def pair(before: Identities, after: Identities) -> Pairs:
    """The identities that have a value in both."""
    known = (frozenset(before.attempted) & frozenset(after.attempted)) - before.unknown - after.unknown
    first, second = before.exposed & known, after.exposed & known
    return Pairs(count=len(known), only_before=len(first - second), only_after=len(second - first))


def exposure_changes(before: AuditReport, after: AuditReport) -> tuple[Change, ...]:
    """The change of exposure by each attack that measured it in both audits, and by all of them together.

    Empty when exposure was not measured in both, or by two verifiers.
    """
    sides = [{a.name: a for a in report.without_controls if is_measured(a)} for report in (before, after)]
    shared = [name for name in sides[0] if name in sides[1]]
    if not shared or objection(before, after):
        return ()
    groups = {name: [name] for name in shared} if len(shared) == 1 else {ALL: shared, **{n: [n] for n in shared}}
    return tuple(
        _change(name, _pick(sides[0], names, before), _pick(sides[1], names, after)) for name, names in groups.items()
    )


def judge_regression(case: Case, decision: DecisionPlan) -> tuple[RuleResult, ...]:
    """Whether significantly more identities are exposed than in the baseline; nothing without a baseline.

    Only attacks that ran in both audits are compared: one more attack finds more people in the same model. Passing
    says that no regression was shown, not that there is none.
    """
    if case.baseline is None:
        return ()
    sides = [{a.name: a for a in report.without_controls} for report in (case.baseline, case.report)]
    shared = [name for name in sides[0] if name in sides[1]]
    why = objection(case.baseline, case.report) or _suites_differ(sides[0], sides[1], shared)
    if why:
        return (_rule("INCONCLUSIVE", f"cannot be compared: {why}"),)
    pairs = pair(_pick(sides[0], shared, case.baseline), _pick(sides[1], shared, case.report))
    p_value = exact.mcnemar_more(pairs.only_before, pairs.only_after)
    found = (
        f"{pairs.only_after} of {pairs.count} identities are exposed now and were not, {pairs.only_before} were and "
        f"are not now (exact one-sided McNemar p = {p_value:.2g})"
    )
    if not pairs.count:
        return (_rule("INCONCLUSIVE", "cannot be compared: no identity has a value in both audits"),)
    if p_value < decision.alpha:
        return (_rule("FAIL", found),)
    lacking = [name for name in sides[0] if name not in shared]
    if lacking:
        missing = f"what {', '.join(lacking)} of the baseline would find now is unknown; run it again"
        return (_rule("INCONCLUSIVE", f"{found}; {missing}"),)
    return (_rule("PASS", found),)


def objection(before: AuditReport, after: AuditReport) -> str:
    """Why exposure cannot be paired; empty when it can."""
    if before.private.fingerprint != after.private.fingerprint:
        return "the private data differ"
    if before.verifier is None or after.verifier is None:
        return "exposure was not verified in both audits"
    first, second = ((v.sha256, v.threshold) for v in (before.verifier, after.verifier))
    return "" if first == second else "the verifiers differ"


def _suites_differ(before: Mapping[str, AttackResult], after: Mapping[str, AttackResult], shared: Sequence[str]) -> str:
    """Why the attacks of two audits say nothing about the change of the model; empty when they do."""
    if not shared:
        return "no attack ran in both audits"
    for name in shared:
        first, second = before[name], after[name]
        if set(first.seeds) != set(second.seeds):
            return f"{name} ran with other seeds"
        if _plain(first.settings) != _plain(second.settings):
            return f"{name} ran with other settings"
    return ""


def _plain(settings: Mapping[str, object]) -> str:
    """Settings as a saved result holds them: a list and a tuple are the same."""
    return json.dumps(settings, sort_keys=True, default=str)


def _rule(outcome: Outcome, reason: str) -> RuleResult:
    return RuleResult(id=RULE, when="exposure > baseline.exposure", outcome=outcome, reason=reason)


def _pick(attacks: dict[str, AttackResult], names: Iterable[str], report: AuditReport) -> Identities:
    return exposed_by([attacks[name] for name in names], report)


def _change(name: str, before: Identities, after: Identities) -> Change:
    pairs = pair(before, after)
    p_value = exact.mcnemar(pairs.only_before, pairs.only_after)
    meaning = "no significant change"
    if p_value < LEVEL:
        meaning = "more leakage" if pairs.only_after > pairs.only_before else "less leakage"
    return Change(
        attack=name,
        name=NAME,
        before=_share(before),
        after=_share(after),
        difference=_difference(pairs),
        meaning=meaning if pairs.count else "not comparable",
        p_value=p_value if pairs.count else None,
    )


def _share(found: Identities) -> Quantity:
    known = len(found.attempted) - len(found.unknown)
    if not known:
        return Quantity(value=None, unit="share", count=0, counted="identities", reason="no identity has a value")
    hits = len(found.exposed)
    bounds = Interval(
        low=exact.lower_share(hits, known, alpha=LEVEL / 2),
        high=exact.upper_share(hits, known, alpha=LEVEL / 2),
        method=f"exact binomial over {known} identities",
    )
    return Quantity(value=hits / known, unit="share", count=known, counted="identities", interval=bounds)


def _difference(pairs: Pairs) -> Quantity:
    """After minus before: (2 p - 1) d, where d is the share that changed sides and p the part of it now exposed."""
    if not pairs.count:
        return Quantity(value=None, unit="share", count=0, counted="identities", reason="no identity has both values")
    changed = pairs.only_before + pairs.only_after
    if changed:
        sides = (exact.lower_share, exact.upper_share)
        excess = [2 * side(pairs.only_after, changed, alpha=DIRECTION / 2) - 1 for side in sides]
        least, most = (side(changed, pairs.count, alpha=(LEVEL - DIRECTION) / 2) for side in sides)
        low = excess[0] * (least if excess[0] > 0 else most)
        high = excess[1] * (most if excess[1] > 0 else least)
    else:
        high = exact.upper_share(0, pairs.count, alpha=LEVEL)
        low = -high
    method = f"exact binomial over {pairs.count} identities, {changed} of which changed sides"
    return Quantity(
        value=(pairs.only_after - pairs.only_before) / pairs.count,
        unit="share",
        count=pairs.count,
        counted="identities",
        interval=Interval(low=low, high=high, method=method),
    )
