"""The only place that says pass or fail. Needs no torch, so that a saved run is judged at once.

A rule is the condition to fail on. `x > limit` fails when the whole interval of x lies above the limit, passes when
none of it does, and is inconclusive otherwise. Sums combine intervals conservatively (low - high, high - low), except
that a change against the undefended twin uses its paired interval. A pass also needs evidence that the suite could
have found a leak.
"""

from collections.abc import Callable, Sequence
from datetime import date
from difflib import get_close_matches
from typing import Literal

from mi_audit.audit.bounds import Bounds, Case, bounds
from mi_audit.audit.expression import Condition, Operator, Reference, parse
from mi_audit.audit.plan import DecisionPlan, RulePlan, WaiverPlan
from mi_audit.audit.waivers import settle
from mi_audit.core.errors import ConfigError, NothingToAudit
from mi_audit.core.report import AttackOutcome, AuditReport, Comparison, Outcome, RuleResult, Verdict

LEAST_ACCEPTANCE = 0.90
MODEL_METRICS = ("accuracy", "evaluator_accuracy")
KNOWN = (
    *MODEL_METRICS,
    "attack_acc1",
    "attack_acc5",
    "knn_l2sq_min",
    "fid",
    "fid_evaluator",
    "target_acceptance",
    "exposure",
    "exposure_train",
    "type1_gap",
    "kid",
    "kid_evaluator",
    "diversity_1cos",
    "precision_k3",
    "recall_k3",
    "density_k3",
    "coverage_k3",
    "share_closer_pixel",
    "share_closer_evaluator",
    "near_duplicates",
    "kes",
    "lpips_alex_min_train",
    "lpips_vgg_min_train",
    "attack_acc1_variance_kedmi",
    "precision_nearest_k3",
)
EXIT = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 5}
RUN_FAILED = 4
POLICY: Literal["audit-v1"] = "audit-v1"
REGRESSION = f"{POLICY}-regression"  # the rule that needs a baseline
STOPPED_EARLY = "the run stopped early on exposure, so intervals of other numbers are too optimistic"
GROUNDS = ("V1 ", "V2 ")  # checks of what every rule stands on, whatever the policy
MEASURED_HERE = "NOT_CONVERGED"  # the flag that says what target acceptance says already


def judge(
    result: AuditReport | Comparison,
    rules: Sequence[RulePlan],
    baseline: AuditReport | Comparison | None = None,
    max_regression: float | None = None,
    decision: DecisionPlan | None = None,
    waivers: Sequence[WaiverPlan] = (),
    today: date | None = None,
) -> Verdict | None:
    """The verdict of all rules on `result`; of a comparison, on the defended model. None when there is no rule.

    A rule that fails and is waived keeps its outcome, does not count, and is listed with who answers for it.

    Args:
        result: What to judge.
        rules: Conditions to fail on.
        baseline: What `baseline.METRIC` refers to; of a comparison, its defended model. Without one: the
            undefended twin, when `result` is a comparison.
        max_regression: Largest rise of `attack_acc1` over the baseline, a share; adds a rule called `regression`.
        decision: With policy `audit-v1` exposure is judged beside the rules.
        waivers: Failing rules that somebody answers for.
        today: Day on which waivers are looked at; None is today.

    Raises:
        ConfigError: A rule cannot be read, names an unknown metric, or needs a baseline that is not there.
        NothingToAudit: No attack was run.
    """
    case = _case(result, baseline)
    if not case.report.without_controls:
        raise NothingToAudit(
            "expected a result with at least one attack, got none; run `mi-audit attack` with --attacks"
        )
    if max_regression is not None:
        rules = [*rules, RulePlan(id="regression", when=f"attack_acc1 - baseline.attack_acc1 > {max_regression!r}")]
    weak = sanity(case.report)
    problems = doubts = (*weak, STOPPED_EARLY) if case.report.planned else weak
    judged = tuple(_judge_rule(rule, case, doubts) for rule in rules)
    exposure = None
    if decision is not None and decision.policy == POLICY:
        from mi_audit.audit.audit_v1 import judge_exposure
        from mi_audit.audit.regression import judge_regression

        found, exposure, problems = judge_exposure(case.report, decision, weak)
        judged = (*found, *judge_regression(case, decision), *judged)
        problems = tuple(dict.fromkeys((*problems, *(doubts if rules else ()))))
    if not judged:
        return None
    listed = settle(waivers, judged, case.report, today)
    excused = {waiver.id for waiver in listed if waiver.applied}
    counting = [rule.outcome for rule in judged if rule.id not in excused]
    return Verdict(
        outcome=_worst(counting) if counting else "PASS",
        rules=judged,
        reasons=problems,
        exposure=exposure,
        waivers=listed,
    )


def saved_rules(verdict: Verdict | None) -> tuple[RulePlan, ...]:
    """The conditions that a saved run was judged by; not the rules that a policy adds."""
    rules = verdict.rules if verdict else ()
    return tuple(RulePlan(id=old.id, when=old.when) for old in rules if not old.id.startswith(POLICY))


def saved_decision(verdict: Verdict | None) -> DecisionPlan:
    """How exposure was decided in a saved run."""
    exposure = verdict.exposure if verdict else None
    if exposure is None:
        return DecisionPlan()
    return DecisionPlan(policy=POLICY, tau=exposure.tau, alpha=exposure.alpha, sequential=exposure.sequential)


def check_baseline(
    result: AuditReport | Comparison, baseline: AuditReport | Comparison | None, decision: DecisionPlan
) -> None:
    """A saved run is not judged without the baseline that it was judged against: no result keeps it.

    Raises:
        ConfigError: Exposure was compared with a baseline, is to be judged again, and no baseline is given.
    """
    if baseline is not None or decision.policy != POLICY or isinstance(result, Comparison) or result.verdict is None:
        return
    if any(rule.id == REGRESSION for rule in result.verdict.rules):
        raise ConfigError(
            f"expected the baseline that this run was compared with ({REGRESSION}), got none; give --baseline "
            "RESULT.json, or --fail-on with the conditions that are to hold without one"
        )


def exit_code(verdict: Verdict | None, failed_jobs: int, exit_zero: bool = False) -> int:
    """0 pass or nothing gated, 1 fail, 4 a job failed, 5 inconclusive; `exit_zero` forgives 1 and 5 only.

    What stops a run earlier (2 usage, 3 nothing to audit) is carried by the error that was raised.
    """
    if failed_jobs:
        return RUN_FAILED
    return 0 if verdict is None or exit_zero else EXIT[verdict.outcome]


def failed_jobs(result: AuditReport | Comparison) -> tuple[str, ...]:
    """The jobs that failed, of both sides of a comparison."""
    reports = (result.before, result.after) if isinstance(result, Comparison) else (result,)
    return tuple(job for report in reports for attack in report.attacks for job in attack.failed)


def sanity(report: AuditReport) -> tuple[str, ...]:
    """Reasons why low leakage in this report would not show privacy; empty when there are none.

    The attacks must have convinced the target itself, nothing may have failed or been flagged, and the evaluator must
    be more than half-way between chance and perfect, by the lower end of its interval. Where an accuracy is declared,
    it must have been reproduced, and where a positive control ran, it must have succeeded.
    """
    return (*_unconvincing(report), *_unfinished(report), *_weak_evaluator(report), *_unfounded(report))


def _case(result: AuditReport | Comparison, baseline: AuditReport | Comparison | None) -> Case:
    given = baseline.after if isinstance(baseline, Comparison) else baseline
    if isinstance(result, AuditReport):
        return Case(result, given, ())
    return Case(result.after, given, ()) if given else Case(result.after, result.before, result.changes)


def _unconvincing(report: AuditReport) -> tuple[str, ...]:
    found = []
    for attack in report.without_controls:
        accepted = attack.measurement("target_acceptance")
        if accepted is None or accepted.value is None:
            found.append(f"{attack.name}: it is unknown whether the target accepts the reconstructions")
        elif accepted.value < LEAST_ACCEPTANCE:
            found.append(
                f"{attack.name}: the target accepts {accepted.value:.1%} of the reconstructions, less than "
                f"{LEAST_ACCEPTANCE:.0%}: the attack did not optimise, which does not show privacy"
            )
    return tuple(found)


def _unfinished(report: AuditReport) -> tuple[str, ...]:
    failed = [f"{attack.name}: {len(attack.failed)} jobs failed" for attack in report.attacks if attack.failed]
    flagged = [
        f"{attack.name}: {flag}"
        for attack in report.without_controls
        for flag in attack.flags
        if not flag.startswith(MEASURED_HERE)
    ]
    return (*failed, *flagged)


def _weak_evaluator(report: AuditReport) -> tuple[str, ...]:
    accuracy = report.evaluator.accuracy
    needed = (1 + 1 / report.evaluator.num_classes) / 2
    lowest = accuracy.interval.low if accuracy.interval else accuracy.value
    if lowest is not None and lowest > needed:
        return ()
    got = "is unknown" if lowest is None else f"may be as low as {lowest:.1%}"
    return (f"the accuracy of the evaluator {got}; it has to exceed {needed:.1%}, half-way from chance to perfect",)


def _unfounded(report: AuditReport) -> tuple[str, ...]:
    """Another model than declared, or attacks that could not even break a leaky one."""
    raised = [flag for flag in report.validity if flag.passed is False and flag.id.startswith(GROUNDS)]
    return tuple(f"{flag.id}: {flag.detail}; {flag.clears}" for flag in raised)


def _judge_rule(rule: RulePlan, case: Case, problems: tuple[str, ...]) -> RuleResult:
    condition = parse(rule.when)
    for reference in condition.references():
        _check_known(reference, case, rule.when)
    on_attacks = any(reference.metric not in MODEL_METRICS for reference in condition.references())
    loose = any(not reference.attack and reference.metric not in MODEL_METRICS for reference in condition.references())
    names = [attack.name for attack in case.report.without_controls] if loose else [""]
    decisions = [_decide(condition, case, name) for name in names]
    if on_attacks and problems:
        doubt = f"would pass, but {'; '.join(problems)}"
        decisions = [
            ("INCONCLUSIVE", doubt) if decision == "PASS" else (decision, text) for decision, text in decisions
        ]
    outcome = _worst([decision for decision, _ in decisions])
    reason = "; ".join(dict.fromkeys(text for decision, text in decisions if decision == outcome))
    parts = tuple(
        AttackOutcome(attack=name, outcome=decision, reason=text)
        for name, (decision, text) in zip(names, decisions, strict=True)
        if name
    )
    return RuleResult(id=rule.id, when=rule.when, outcome=outcome, reason=reason, attacks=parts)


def _check_known(reference: Reference, case: Case, when: str) -> None:
    measured = {found.name for attack in case.report.attacks for found in attack.measurements}
    known = sorted({*KNOWN, *measured})
    if reference.metric not in known:
        close = get_close_matches(reference.metric, known, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        raise ConfigError(f"expected a known metric in the gate rule {when!r}, got {reference.metric!r}; {advice}")
    if reference.source == "baseline" and case.baseline is None:
        raise ConfigError(f"expected a baseline for the gate rule {when!r}, got none; give --baseline RESULT.json")


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    order: tuple[Outcome, ...] = ("FAIL", "INCONCLUSIVE", "PASS")
    return min(outcomes, key=order.index)


def _decide(condition: Condition, case: Case, attack: str) -> tuple[Outcome, str]:
    who = f"{attack}: " if attack else ""
    left, right = bounds(condition.left, case, attack), bounds(condition.right, case, attack)
    if isinstance(left, str):
        return "INCONCLUSIVE", who + left
    if isinstance(right, str):
        return "INCONCLUSIVE", who + right
    outcome = _compare(left, condition.operator, right)
    side = "above" if condition.operator[0] == ">" else "below"
    ending = {
        "FAIL": f"the whole interval is {side} it",
        "PASS": f"none of the interval is {side} it",
        "INCONCLUSIVE": f"the interval reaches both sides of it{_more(left, right)}",
    }[outcome]
    limit = f"{right}" if isinstance(condition.right, float) else f"{condition.right} = {right}"
    return outcome, f"{who}{condition.left} = {left}, limit {limit}: {ending}"


def _compare(left: Bounds, operator: Operator, right: Bounds) -> Outcome:
    if operator[0] == "<":
        left, operator, right = right, ">" if operator == "<" else ">=", left
    exceeds: Callable[[float, float], bool] = float.__gt__ if operator == ">" else float.__ge__
    if exceeds(left.low, right.high):
        return "FAIL"
    return "INCONCLUSIVE" if exceeds(left.high, right.low) else "PASS"


def _more(left: Bounds, right: Bounds) -> str:
    """How much more data would decide, if value and spread stay: the width of an interval falls as 1 / sqrt(n)."""
    gap, half = abs(left.value - right.value), (left.high - left.low + right.high - right.low) / 2
    if half <= gap or gap < half / 100:  # decided, or hopeless
        return ""
    return f"; about {(half / gap) ** 2:.1f} times as many classes and seeds would decide if the value stayed"
