"""Numbers and outcomes in words: what all reports say, said once."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from mi_audit.core.report import AttackResult, AuditReport, Comparison, Exposure, Measurement, Quantity
from mi_audit.report.vocabulary import ACCESS as ACCESS
from mi_audit.report.vocabulary import CHECKS as CHECKS
from mi_audit.report.vocabulary import CONTROLS as CONTROLS
from mi_audit.report.vocabulary import MEANINGS as MEANINGS
from mi_audit.report.vocabulary import METRICS as METRICS
from mi_audit.report.vocabulary import NO_PROOF as NO_PROOF
from mi_audit.report.vocabulary import OUTCOMES as OUTCOMES
from mi_audit.report.vocabulary import TAXA as TAXA
from mi_audit.report.vocabulary import TAXONOMY as TAXONOMY
from mi_audit.report.vocabulary import Taxon as Taxon
from mi_audit.report.vocabulary import Tone as Tone

TELL = "What everybody who gets or relies on this model must be told"
DASH = "\N{EN DASH}"  # stands for a number that is missing


class Headline(NamedTuple):
    """The first thing a reader sees: the outcome in a word, its colour, and one sentence."""

    outcome: str
    tone: Tone
    sentence: str


def headline(result: AuditReport | Comparison) -> Headline:
    """The outcome of a result, for somebody with ten seconds."""
    if result.verdict is None:
        outcome, tone = "No gate", "plain"
    else:
        outcome, tone = OUTCOMES[result.verdict.outcome]
    exposure = result.verdict.exposure if result.verdict else None
    if isinstance(result, Comparison):
        sentence = result.summary
    else:
        sentence = exposure_sentence(exposure) if exposure else audit_sentence(result)
    return Headline(outcome, tone, sentence)  # type: ignore[arg-type]


def audit_sentence(report: AuditReport) -> str:
    """What the strongest attack achieved, beside what guessing achieves without the model."""
    strongest = strongest_attack(report)
    if strongest is None:
        return "No attack was measured, so nothing can be said about this model."
    reached = strongest.measurement("attack_acc1")
    sentence = (
        f"The strongest attack, {attack_title(strongest.name)}, rebuilt pictures that an independent classifier "
        f"takes for the attacked class in {rounded(reached)} of all attempts"
    )
    control = control_for(report, strongest)
    floor = control.measurement("attack_acc1") if control else None
    if floor is None or floor.value is None:
        return f"{sentence}; there is no control to compare with."
    found = rounded(floor, spread=False)
    if control is not None and not is_random(control):
        return f"{sentence}; the control ({control_words(control)}) reaches {found}."
    return f"{sentence}; random pictures that never saw the model reach {found}."


def strongest_attack(report: AuditReport) -> AttackResult | None:
    """The attack with the highest measured top-1 attack accuracy."""
    found = ((attack.measurement("attack_acc1"), attack) for attack in report.without_controls)
    scored = [(measured.value, attack) for measured, attack in found if measured and measured.value is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def control_for(report: AuditReport, attack: AttackResult) -> AttackResult | None:
    """The random samples of the same prior as `attack`, else another control with it, else any control."""
    controls = [other for other in report.attacks if other.floor]
    controls.sort(key=lambda control: not is_random(control))
    return next((other for other in controls if other.prior == attack.prior), controls[0] if controls else None)


def attack_title(name: str) -> str:
    """`ppa` as papers write it, controls in words."""
    if name.startswith("control:"):
        kind, _, about = name.removeprefix("control:").partition(":")
        return f"control: {kind.replace('-', ' ')}{f' ({about})' if about else ''}"
    return "Model itself" if name == "utility" else name.upper()


def isolates(name: str) -> str:
    """What a control tells apart from a leak."""
    kind = name.removeprefix("control:")
    return next((text for start, text in CONTROLS.items() if kind.startswith(start)), "")


def is_random(control: AttackResult) -> bool:
    """Whether the control is random pictures, which never saw the model."""
    return control.name.startswith("control:random")


def control_words(control: AttackResult) -> str:
    """What a control is, without what it tells apart."""
    return isolates(control.name).partition(":")[0].partition(",")[0] or attack_title(control.name)


def notes(result: AuditReport | Comparison) -> tuple[str, ...]:
    """What there is to know about how controls were made, without repetition."""
    sides: dict[str, AuditReport] = (
        {"Before: control": result.before, "After: control": result.after}
        if isinstance(result, Comparison)
        else {"Control": result}
    )
    made = [
        f"{side} {attack.name.removeprefix('control:').partition(':')[0].replace('-', ' ')}: {attack.note}"
        for side, report in sides.items()
        for attack in report.attacks
        if attack.note
    ]
    return tuple(dict.fromkeys(made))


def metric_title(name: str) -> str:
    return METRICS[name][0] if name in METRICS else name.replace("_", " ").capitalize()


def metric_short(name: str) -> str:
    return METRICS[name][1] if name in METRICS else name.replace("_", " ")


def metric_help(name: str) -> str:
    return METRICS[name][2] if name in METRICS else ""


def number(value: float | None, unit: str) -> str:
    """A value in its unit: shares as percentages, others with three figures, a dash for nothing."""
    if value is None:
        return DASH
    if unit == "share":
        return f"{100 * value:.1f}%"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_interval(quantity: Quantity | None) -> str:
    """`43.2% [31.0, 55.4]`, or a dash."""
    if quantity is None or quantity.value is None:
        return DASH
    text = number(quantity.value, quantity.unit)
    return f"{text} {interval(quantity)}".rstrip()


def rounded(quantity: Quantity | None, spread: bool = True) -> str:
    """A share for a sentence: `43% (31 to 55%)`."""
    if quantity is None or quantity.value is None:
        return "an unknown share"
    ends = quantity.interval
    text = f"{quantity.value:.0%}"
    return f"{text} ({100 * ends.low:.0f} to {ends.high:.0%})" if ends and spread else text


def interval(quantity: Quantity | None) -> str:
    """`[31.0, 55.4]`, or nothing when there is none."""
    if quantity is None or quantity.interval is None:
        return ""
    low, high = (
        number(end, quantity.unit).removesuffix("%") for end in (quantity.interval.low, quantity.interval.high)
    )
    return f"[{low}, {high}]"


def difference(quantity: Quantity, value: bool = True, spread: bool = True, unit: bool = True) -> str:
    """A signed change, its interval, or both; shares in percentage points."""
    points = quantity.unit == "share"
    parts = []
    if value:
        parts.append(
            DASH if quantity.value is None else f"{_signed(quantity.value, points)}{' pts' if points and unit else ''}"
        )
    if spread and quantity.interval:
        ends = (_signed(end, points) for end in (quantity.interval.low, quantity.interval.high))
        parts.append(f"[{', '.join(ends)}]")
    return " ".join(parts)


def _signed(value: float, points: bool) -> str:
    text = f"{100 * value:+.1f}" if points else f"{value:+.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def footnote(quantity: Quantity) -> str:
    """How a number was counted, and why it or its interval is missing."""
    parts = [f"{quantity.count:,} {quantity.counted}"]
    if quantity.interval:
        parts.append(f"{quantity.interval.level:.0%} interval, {quantity.interval.method}")
    if quantity.reason:
        parts.append(quantity.reason)
    return "; ".join(parts)


def leak_direction(measurement: Measurement) -> str:
    """Which way leakage grows."""
    return {True: "larger leaks more", False: "smaller leaks more", None: ""}[measurement.leak_grows]


def plural(count: int, noun: str, many: str = "") -> str:
    """`1 class`, `3 classes`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def setting(value: object) -> str:
    """A hyper-parameter or a fact as one line of text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {setting(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value)
    return DASH if value is None else str(value)


def fact(name: str, value: object) -> str:
    """A fact as one line: shares in percent, hashes by their beginning."""
    if isinstance(value, float) and name.startswith("share_") | name.endswith("accuracy"):
        return f"{value:.1%}"
    return str(value)[:16] if name == "sha256" else setting(value)


def as_sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}" if text else ""


def words(name: str) -> str:
    """`trainable_share` as `trainable share`."""
    return re.sub(r"[_\s]+", " ", name).strip()


def attacked_line(report: AuditReport) -> str:
    """`32 of 530 classes attacked`, and why no more."""
    line = f"{len(report.attacked):,} of {plural(len(report.classes), 'class', 'classes')} attacked"
    return f"{line}; {len(report.planned):,} were planned, but the bounds had decided" if report.planned else line


def exposure_sentence(exposure: Exposure) -> str:
    """What was decided on, for somebody who knows no statistics."""
    return (
        f"An independent verifier recognises {exposure.exposed:,} of "
        f"{plural(exposure.attacked, 'attacked identity', 'attacked identities')} in the best picture that any attack "
        f"rebuilt of them. With {1 - exposure.alpha:.0%} confidence at most {100 * exposure.adjusted:.1f}% of all "
        f"identities are exposed; {100 * exposure.tau:g}% would be tolerated."
    )


def exposure_line(exposure: Exposure) -> str:
    """The exposure in figures, as the gate says it."""
    from mi_audit.audit.audit_v1 import sentence

    return sentence(exposure)


def unmeasured(result: AuditReport | Comparison) -> tuple[str, ...]:
    """Metrics without a value, each with the reason."""
    reports = (result.before, result.after) if isinstance(result, Comparison) else (result,)
    shown = [attack for report in reports for attack in report.without_controls]
    found = [m for attack in shown for m in attack.measurements if m.value is None]
    return tuple(dict.fromkeys(f"{metric_title(m.name)}: {m.reason or 'no reason given'}" for m in found))


def distrust(report: AuditReport) -> tuple[str, ...]:
    """Flags and failures of single attacks, each with its name in front."""
    flags = [f"{attack_title(a.name)}: {flag}" for a in report.attacks for flag in a.flags]
    failed = [f"{attack_title(a.name)}: job failed, {job}" for a in report.attacks for job in a.failed]
    return (*flags, *failed)


def warnings(result: AuditReport | Comparison) -> tuple[str, ...]:
    """Everything a reader should know before trusting a number, without repetition."""
    if isinstance(result, AuditReport):
        return tuple(dict.fromkeys((*result.warnings, *distrust(result))))
    before = [f"Before: {text}" for text in distrust(result.before)]
    after = [f"After: {text}" for text in distrust(result.after)]
    return tuple(dict.fromkeys((*result.warnings, *result.before.warnings, *result.after.warnings, *before, *after)))
