"""What was decided and on what grounds: rules, the exposure behind them, validity checks, waivers, the verifier."""

from dataclasses import dataclass
from typing import Literal

from mi_audit.core.quantity import Quantity

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidityFlag:
    """One check of whether low numbers would mean anything.

    Attributes:
        id: Such as `G2 ZERO_GRAD`.
        passed: None when it could not be checked, or was not asked for.
        detail: What was found, with the numbers.
        clears: What has to be done for it to pass; empty when it did.
    """

    id: str
    passed: bool | None
    detail: str
    clears: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierFacts:
    """The independent judge of whether a picture shows a person.

    Attributes:
        ref, arch, sha256: Which network; hash of its weights.
        threshold: Similarity from which two pictures count as one person.
        far: False acceptance rate on held-out impostor pairs.
        sensitivity: Share of held-out genuine pairs it accepts.
        trained_on: Data it was trained on.
        weakness: What it cannot be trusted with.
    """

    ref: str
    arch: str
    sha256: str
    threshold: float
    far: Quantity
    sensitivity: Quantity
    trained_on: str
    weakness: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackOutcome:
    """What became of a rule on one attack."""

    attack: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleResult:
    """One gate rule and what became of it.

    Attributes:
        attacks: The outcome on each attack, when the rule was applied to them one by one.
    """

    id: str
    when: str
    outcome: Outcome
    reason: str
    attacks: tuple[AttackOutcome, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """How many identities the attacks exposed, and the bounds on the share over all of them.

    Attributes:
        exposed, attacked, total: Identities whose surest reconstruction by any attack was verified, identities
            attempted, identities there are (None when unknown).
        missing: Attempted identities without a value; exposed in `upper`, not exposed in `lower`.
        value: exposed / attacked.
        lower, upper: One-sided bounds at level 1 - alpha; `upper` before division by the sensitivity.
        adjusted: `upper` / lower bound of the verifier's sensitivity: what is compared with tau.
        sensitivity: That lower bound; 1 when the audit has no verifier facts.
        control: Exposure of the strongest control; None when there is none.
        tau, alpha: Largest share tolerated, error rate of each bound.
        method: `census`, `hypergeometric`, `Clopper-Pearson`, or `e-process`.
        sequential: Counting stopped, or may stop, as soon as enough were seen.
        more: How many more identities would decide if the share stayed; None when decided, or no number would.
    """

    exposed: int
    attacked: int
    total: int | None
    missing: int
    value: float
    lower: float
    upper: float
    adjusted: float
    sensitivity: float
    control: Quantity | None
    tau: float
    alpha: float
    method: str
    sequential: bool = False
    more: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """A failing rule that somebody answers for.

    Attributes:
        id: The rule it excuses.
        model_sha256: The only weights it holds for.
        expires: Last day it holds, YYYY-MM-DD.
        reason: Why, and who said so.
        applied: It turned a FAIL into a reported waiver.
        status: `applied`, or why it was not.
    """

    id: str
    model_sha256: str
    expires: str
    reason: str
    applied: bool
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of all rules that are not waived: FAIL beats INCONCLUSIVE beats PASS.

    Attributes:
        rules: Every rule with its own outcome, also the waived ones.
        reasons: Why low leakage would not show privacy.
        exposure: What policy `audit-v1` decided on; None under other policies.
        waivers: Every waiver that was given, and whether it took effect.
    """

    outcome: Outcome
    rules: tuple[RuleResult, ...]
    reasons: tuple[str, ...] = ()
    exposure: Exposure | None = None
    waivers: tuple[Waiver, ...] = ()
