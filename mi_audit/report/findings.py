"""What machine formats say: rules and attacks in numbers, never a picture, never the name of a class."""

import hashlib
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from mi_audit.core.report import AuditReport, Comparison, Measurement, RuleResult, Verdict
from mi_audit.report import view, wording

SETTINGS_FILE = "mi-audit.toml"
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pt2", ".ts", ".torchscript")
NEAR_COPIES = "near_duplicates"
State = Literal["pass", "fail", "open", "review", "waived"]
TONES: dict[State, wording.Tone] = {
    "pass": "good", "fail": "bad", "open": "unsure", "review": "bad", "waived": "unsure",
}  # fmt: skip


class Finding(NamedTuple):
    """One gate rule, on one attack when `attack` is not empty.

    Attributes:
        state: `open` stands for inconclusive, `review` for a failure that a person has to look at, `waived` for one
            that somebody answers for.
        waiver: Who answers for it and until when; empty unless waived.
        numbers: What was measured, in words.
    """

    rule: str
    when: str
    attack: str
    state: State
    reason: str
    waiver: str
    numbers: tuple[str, ...]

    @property
    def title(self) -> str:
        """`MI001 PPA: attack_acc1 > 0.10`."""
        return f"{self.rule}{f' {wording.attack_title(self.attack)}' if self.attack else ''}: {self.when}"


def by_rule(result: AuditReport | Comparison) -> tuple[Finding, ...]:
    """One finding per gate rule; none when nothing was gated."""
    verdict = result.verdict
    return tuple(_finding(result, verdict, rule) for rule in verdict.rules) if verdict else ()


def by_attack(result: AuditReport | Comparison) -> tuple[Finding, ...]:
    """One finding per attack and rule; a rule that is not about single attacks has one.

    Where a rule would pass on every attack and is inconclusive all the same, so is each of them.
    """
    verdict, found = result.verdict, []
    for rule in verdict.rules if verdict else ():
        assert verdict is not None
        whole = _finding(result, verdict, rule)
        doubted = rule.outcome == "INCONCLUSIVE" and all(part.outcome == "PASS" for part in rule.attacks)
        found += [
            whole._replace(
                attack=part.attack,
                state="open" if doubted else _state(verdict, rule, part.outcome),
                reason=rule.reason if doubted else part.reason,
                numbers=numbers(result, part.attack),
            )
            for part in rule.attacks
        ] or [whole]
    return tuple(found)


def numbers(result: AuditReport | Comparison, attack: str = "") -> tuple[str, ...]:
    """What was measured on one attack or, without a name, on all of them and on the model."""
    _, after = view.sides(result)
    lines: list[str] = []
    for found in after.without_controls:
        if found.name == attack or not attack:
            title = wording.attack_title(found.name)
            lines += [f"{title}: {_line(m)}" for m in view.in_order(found) if m.value is not None]
    if not attack:
        lines += [f"model: accuracy {wording.with_interval(model.accuracy)}" for model in after.targets]
    return tuple(lines)


def fingerprint(result: AuditReport | Comparison, *parts: str) -> str:
    """A hash of the weights under audit and of `parts`, so that the same finding is recognised again."""
    _, after = view.sides(result)
    weights = sorted(model.sha256 for model in after.targets)
    return hashlib.sha256("\n".join([*weights, *parts]).encode(errors="replace")).hexdigest()


def location(result: AuditReport | Comparison) -> str:
    """The file to point at: the weights, when their reference is a path inside the checkout, else the settings."""
    _, after = view.sides(result)
    for model in after.targets:
        path = PurePosixPath(model.ref.replace("\\", "/"))
        inside = not path.is_absolute() and ".." not in path.parts and ":" not in model.ref
        if inside and path.suffix.lower() in WEIGHT_FILES:
            return str(path)
    return SETTINGS_FILE


def pseudonym(name: str) -> str:
    """A stable stand-in for the name of a class.

    It hides a name from sight. It does not hide it from somebody who can list the possible names and hash them all.
    """
    return f"id-{hashlib.sha256(f'mi-audit class {name}'.encode(errors='replace')).hexdigest()[:10]}"


def _finding(result: AuditReport | Comparison, verdict: Verdict, rule: RuleResult) -> Finding:
    waiver = next((w for w in verdict.waivers if w.id == rule.id and w.applied), None)
    words = f"{waiver.reason}; until {waiver.expires}" if waiver else ""
    return Finding(rule.id, rule.when, "", _state(verdict, rule, rule.outcome), rule.reason, words, numbers(result))


def _state(verdict: Verdict, rule: RuleResult, outcome: str) -> State:
    if outcome == "FAIL":
        if any(waiver.id == rule.id and waiver.applied for waiver in verdict.waivers):
            return "waived"
        return "review" if NEAR_COPIES in rule.when else "fail"
    return "pass" if outcome == "PASS" else "open"


def _line(measurement: Measurement) -> str:
    counted = f"{measurement.count:,} {measurement.counted}"
    return f"{measurement.name} {wording.with_interval(measurement)} of {counted}"
