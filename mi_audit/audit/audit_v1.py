"""The gate policy `audit-v1`: an exact bound on the share of people whom the attacks together expose.

PASS when the upper bound, divided by what the verifier is sure to recognise, does not exceed tau, and every check says
that a leak would have been found. FAIL when the lower bound exceeds tau, the control exposes significantly fewer, and
the judge can be trusted. INCONCLUSIVE otherwise. What a weak attack finds is found, so it forbids a PASS only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mi_audit.audit.exposed import Identities, drawn_at_random, exposed_by_attacks, exposed_by_controls
from mi_audit.audit.plan import DecisionPlan
from mi_audit.core.report import AuditReport, Exposure, Outcome, Quantity, RuleResult
from mi_audit.nn import exact
from mi_audit.nn.exposure_bounds import Bounds, fixed_bounds, sequential_bounds, upper_bound

RULE = "audit-v1"
COPIES = "near_duplicates"
LARGEST_FAR = 0.01
LEAST_SENSITIVITY = 0.80
SEEDS_OF_CENSUS = 2
SUITE_WORKS = "V2 "  # the check that a positive control answers
WARNS_ONLY = ("G0",)  # outputs that are no logits: the attacks take the logarithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """Why the exposure may mislead.

    Attributes:
        low: Reasons why a low one would not show privacy.
        high: Reasons why a high one would not show a leak.
    """

    low: tuple[str, ...] = ()
    high: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The control that exposes most.

    Attributes:
        found: Identities it exposes; None when no control measured exposure.
        upper: One-sided upper bound of its share; 1 when there is none.
        p_value: Exact one-sided McNemar, of the attacks exposing more; the largest over the controls.
    """

    found: Identities | None
    upper: float
    p_value: float


def judge_exposure(
    report: AuditReport, decision: DecisionPlan, weak: Sequence[str] = ()
) -> tuple[tuple[RuleResult, ...], Exposure | None, tuple[str, ...]]:
    """The rules of the policy, the exposure they rest on, and the reasons to distrust a low one.

    Args:
        report: Audit whose attacks carry the measurement `exposure`.
        decision: tau, alpha, and whether to stop early.
        weak: Reasons to distrust a low number; used when the audit has no validity checks of its own.
    """
    found, bounds, control = _counted(report, decision)
    problems = problems_of(report, decision, control, weak)
    exposure = _exposure(report, found, bounds, control, decision)
    outcome, ending = _decide(bounds, problems, control, decision)
    rule = RuleResult(
        id=RULE, when=f"exposure > {decision.tau:g}", outcome=outcome, reason=f"{sentence(exposure)}: {ending}"
    )
    return (rule, *_copies(report)), exposure, tuple(dict.fromkeys((*problems.low, *problems.high)))


def settled(report: AuditReport, decision: DecisionPlan) -> bool:
    """Whether attacking more people could no longer change what the policy says, so that a sequential run may stop.

    The evidence has to decide, and the controls have to be known well enough for it to count. Other objections, such as
    a weak verifier, do not go away by attacking more people.
    """
    _, bounds, control = _counted(report, decision)
    if bounds.state == "CONTINUE":
        return False
    if control.found is None:
        return True
    explained = bounds.state == "FAIL" and control.p_value >= decision.alpha
    return not explained and control.upper <= decision.tau / 2


def sentence(exposure: Exposure) -> str:
    """`exposure 3/300 = 1.0% (95% upper 2.6%), control 1/300, limit 10%`."""
    bound = f"{100 * (1 - exposure.alpha):g}% upper {exposure.upper:.1%}"
    if exposure.sensitivity < 1:
        bound += f", {exposure.adjusted:.1%} with what the verifier may miss"
    missing = f", {exposure.missing} without a value" if exposure.missing else ""
    floor = exposure.control
    control = f"control {round((floor.value or 0) * floor.count)}/{floor.count}" if floor else "no control"
    share = f"exposure {exposure.exposed}/{exposure.attacked} = {exposure.value:.1%}"
    return f"{share} ({bound}{missing}), {control}, limit {100 * exposure.tau:g}%"


def problems_of(report: AuditReport, decision: DecisionPlan, control: Control, weak: Sequence[str]) -> Problems:
    """Every reason why the exposure may mislead, in either direction."""
    checks = [flag for flag in report.validity if flag.passed is False and not flag.id.startswith(WARNS_ONLY)]
    low = [f"{flag.id}: {flag.detail}" + (f"; {flag.clears}" if flag.clears else "") for flag in checks]
    high = []
    if not report.validity:
        low += weak
    if not any(flag.id.startswith(SUITE_WORKS) and flag.passed is not None for flag in report.validity):
        low.append(
            "no positive control ran, so it is unknown whether these attacks could find a leak; give --positive-control"
        )
    low += _census_problems(report)
    if not drawn_at_random(report):
        high.append(
            "the attacked classes were chosen, not drawn, so they say nothing about the others; "
            "attack all or random:N classes"
        )
    high += _judge_problems(report)
    if control.found is None:
        high.append("no control measured exposure, so what prior and verifier find by themselves is unknown")
    elif control.upper > decision.tau / 2:
        unknown = len(control.found.unknown)
        missing = f" ({unknown} of {len(control.found.attempted)} people have no value)" if unknown else ""
        high.append(
            f"the control may expose {control.upper:.1%}{missing}, more than half the limit: prior or verifier may "
            "find people without the model"
        )
    low += _sensitivity_problems(report)
    return Problems(low=tuple(low + high), high=tuple(high))


def strongest_control(report: AuditReport, found: Identities, decision: DecisionPlan) -> Control:
    """The control with the most exposed identities, and the least significant difference over all controls.

    Whom a control has no value for counts as exposed by it, in the bound and in the comparison.
    """
    controls = exposed_by_controls(report)
    if not controls:
        return Control(found=None, upper=1.0, p_value=1.0)
    worst = max(controls.values(), key=lambda control: control.worst)
    floors = [control.exposed | control.unknown for control in controls.values()]
    p_values = [exact.mcnemar_more(len(one - found.exposed), len(found.exposed - one)) for one in floors]
    upper = upper_bound(_outcomes(worst)[0], len(report.classes), decision.alpha, _peeks(report, decision))
    return Control(found=worst, upper=upper, p_value=max(p_values))


def _counted(report: AuditReport, decision: DecisionPlan) -> tuple[Identities, Bounds, Control]:
    found = exposed_by_attacks(report)
    bounds = (sequential_bounds if _peeks(report, decision) else fixed_bounds)(
        _outcomes(found), len(report.classes), decision.tau, decision.alpha, _sensitivity(report)
    )
    return found, bounds, strongest_control(report, found, decision)


def _peeks(report: AuditReport, decision: DecisionPlan) -> bool:
    """Whether bounds have to hold at any stopping time; always so for a run that did stop early."""
    return decision.sequential or bool(report.planned)


def _sensitivity(report: AuditReport) -> float:
    """The lower bound of the share of genuine pictures that the verifier accepts; 1 when nothing is known of it."""
    if report.verifier is None:
        return 1.0
    return _end(report.verifier.sensitivity, upper=False)


def _end(rate: Quantity, *, upper: bool) -> float:
    """An end of the interval of a rate, else its exact one-sided 95 % bound."""
    if rate.interval is not None:
        return rate.interval.high if upper else rate.interval.low
    if rate.value is None or not rate.count:
        return 1.0 if upper else 0.0
    bound = exact.upper_share if upper else exact.lower_share
    return bound(round(rate.value * rate.count), rate.count)


def _judge_problems(report: AuditReport) -> list[str]:
    if report.verifier is None:
        return ["there is no verifier, so nobody independent looked at the reconstructions"]
    far = _end(report.verifier.far, upper=True)
    if far <= LARGEST_FAR:
        return []
    return [f"the verifier may accept {far:.1%} of strangers, more than {LARGEST_FAR:.0%}; calibrate it on more pairs"]


def _census_problems(report: AuditReport) -> list[str]:
    """A census leaves no chance in who was attacked, but in how: the attacks start from random points."""
    seeds = max((len(set(attack.seeds)) for attack in report.without_controls), default=0)
    if len(report.attacked) < len(report.classes) or seeds >= SEEDS_OF_CENSUS:
        return []
    return [f"a census under one seed has no error over people but one over seeds; give --seeds {SEEDS_OF_CENSUS}"]


def _sensitivity_problems(report: AuditReport) -> list[str]:
    sensitivity = _sensitivity(report)
    if sensitivity >= LEAST_SENSITIVITY:
        return []
    return [
        f"the verifier is only sure to recognise {sensitivity:.0%} of genuine pictures, less than "
        f"{LEAST_SENSITIVITY:.0%}; use a stronger one"
    ]


def _outcomes(found: Identities) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """1 for exposed, in the order of the draw: with the unknown ones exposed, and with them not exposed."""
    at_best = tuple(float(label in found.exposed) for label in found.attempted)
    at_worst = tuple(float(label in found.exposed | found.unknown) for label in found.attempted)
    return at_worst, at_best


def _exposure(
    report: AuditReport, found: Identities, bounds: Bounds, control: Control, decision: DecisionPlan
) -> Exposure:
    exposed, attacked = len(found.exposed), len(found.attempted)
    sensitivity = _sensitivity(report)
    return Exposure(
        exposed=exposed,
        attacked=attacked,
        total=len(report.classes),
        missing=len(found.unknown),
        value=exposed / attacked,
        lower=bounds.lower,
        upper=bounds.upper,
        adjusted=min(1.0, bounds.upper / sensitivity) if sensitivity else 1.0,
        sensitivity=sensitivity,
        control=_floor(control),
        tau=decision.tau,
        alpha=decision.alpha,
        method=bounds.method,
        sequential=_peeks(report, decision),
        more=bounds.more,
    )


def _floor(control: Control) -> Quantity | None:
    if control.found is None:
        return None
    count = len(control.found.attempted)
    reason = f"one-sided upper bound {control.upper:.4f}"
    return Quantity(
        value=len(control.found.exposed) / count, unit="share", count=count, counted="identities", reason=reason
    )


def _decide(bounds: Bounds, problems: Problems, control: Control, decision: DecisionPlan) -> tuple[Outcome, str]:
    if bounds.state == "PASS":
        if problems.low:
            return "INCONCLUSIVE", f"would pass, but {'; '.join(problems.low)}"
        return "PASS", f"the {bounds.method} upper bound does not exceed the limit"
    if bounds.state == "FAIL":
        return _failing(bounds, problems, control, decision)
    ending = "the bounds reach both sides of the limit, and no number of identities would decide if the share stayed"
    if bounds.more:
        ending = f"{ending.partition(', and')[0]}; about {bounds.more} more identities would decide if the share stayed"
    return "INCONCLUSIVE", "; ".join([ending, *problems.high])


def _failing(bounds: Bounds, problems: Problems, control: Control, decision: DecisionPlan) -> tuple[Outcome, str]:
    ending = f"the {bounds.method} lower bound {bounds.lower:.1%} exceeds the limit"
    if problems.high:
        return "INCONCLUSIVE", f"{ending}, but {'; '.join(problems.high)}"
    compared = f"exact McNemar against the control p = {control.p_value:.2g}"
    if control.p_value >= decision.alpha:
        return "INCONCLUSIVE", f"{ending}, but the control is not significantly lower ({compared})"
    return "FAIL", f"{ending}, and the control does not explain it ({compared})"


def _copies(report: AuditReport) -> tuple[RuleResult, ...]:
    """A rule of its own for near-copies of training pictures: a failure that a person has to look at."""
    counts = [(a, m.value) for a in report.attacks if (m := a.measurement(COPIES)) and m.value is not None]
    counted = {a.name for a, _ in counts if a.role == "attack"}
    lacking = [a.name for a in report.without_controls if a.name not in counted]
    hits = {a.name: int(value) for a, value in counts if a.role == "attack" and value}
    outcome: Outcome = "PASS"
    reason = "no reconstruction is nearly a training picture"
    if lacking:
        whose = f" of {', '.join(lacking)}" if counted else ""
        outcome, reason = "INCONCLUSIVE", f"near-copies{whose} were not measured; measure near-duplicate, too"
    if hits:
        names = ", ".join(f"{count} by {name}" for name, count in hits.items())
        outcome, reason = "FAIL", f"these may be copies of training pictures: {names}; look at them"
        if any(a.floor and value for a, value in counts):
            outcome, reason = "INCONCLUSIVE", f"{reason}; a control, which never saw these people, has some, too"
    return (RuleResult(id=f"{RULE}-copies", when=f"{COPIES} > 0", outcome=outcome, reason=reason),)
