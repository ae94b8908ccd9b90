"""Workflow commands for GitHub Actions: one annotation per rule at most."""

from mi_audit.core.report import AuditReport, Comparison
from mi_audit.report import findings
from mi_audit.report.findings import State

LEVELS: dict[State, str] = {
    "fail": "error", "review": "error", "open": "warning", "waived": "warning", "pass": "notice",
}  # fmt: skip
WORDS: dict[State, str] = {
    "fail": "FAIL", "review": "FAIL, for a person to review", "open": "INCONCLUSIVE", "waived": "waived", "pass": "PASS"
}  # fmt: skip
MOST = 10  # annotations of one level that GitHub shows per step


def github(result: AuditReport | Comparison) -> str:
    """One line per rule, the worst first; further ones of a level that GitHub would not show are left out."""
    lines: dict[str, list[str]] = {"error": [], "warning": [], "notice": []}
    file = findings.location(result)
    for finding in findings.by_rule(result):
        text = f"{WORDS[finding.state]}: {finding.when}: {finding.reason}"
        if finding.waiver:
            text = f"{text} (waived: {finding.waiver})"
        level = LEVELS[finding.state]
        lines[level].append(command(level, text, file=file, title=f"mi-audit {finding.rule}"))
    if result.verdict is None:
        lines["notice"].append(command("notice", "No gate rule was given, so nothing was gated.", title="mi-audit"))
    return "".join(f"{line}\n" for found in lines.values() for line in found[:MOST])


def command(name: str, message: str, **properties: str) -> str:
    """`::name key=value,...::message`, with what would end a value or the line escaped."""
    pairs = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{name}{' ' if pairs else ''}{pairs}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
