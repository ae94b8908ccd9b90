"""SARIF 2.1.0: one result per gate rule, so that code scanning shows a verdict and not a crowd of identities."""

import json
from typing import Any
from urllib.parse import quote

from mi_audit.core.report import AuditReport, Comparison
from mi_audit.report import findings, view, wording
from mi_audit.report.findings import Finding, State

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
KINDS: dict[State, str] = {"pass": "pass", "fail": "fail", "open": "open", "review": "review", "waived": "fail"}
Json = dict[str, Any]


def sarif(result: AuditReport | Comparison) -> str:
    """The verdict as a SARIF log with one run.

    A failure is `fail` at level `error`; a pass is `pass`, an inconclusive rule `open` and a suspected copy of a
    training image `review`, all at level `none`. A waiver is an accepted suppression. Validity checks that did not
    pass are notifications of the tool.
    """
    return json.dumps(_log(result), indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"


def _log(result: AuditReport | Comparison) -> Json:
    _, after = view.sides(result)
    found = findings.by_rule(result)
    rules = list({finding.rule: finding for finding in reversed(found)}.values())[::-1]
    run = {
        "tool": {"driver": _driver(after, rules)},
        "automationDetails": {"id": f"mi-audit/{result.id[:12]}"},
        "invocations": [_invocation(result, after)],
        "taxonomies": [_taxonomy(entry) for entry in wording.TAXA],
        "results": [_result(result, finding, [rule.rule for rule in rules]) for finding in found],
        "properties": {
            "resultId": result.id, "schemaVersion": result.schema_version, "note": wording.NO_PROOF,
            "verdict": result.verdict.outcome if result.verdict else "none",
        },
    }  # fmt: skip
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _driver(report: AuditReport, rules: list[Finding]) -> Json:
    supported = [{"name": entry.framework, "index": place} for place, entry in enumerate(wording.TAXA)]
    driver: Json = {
        "name": "mi-audit",
        "rules": [_rule(finding) for finding in rules],
        "supportedTaxonomies": supported,
    }
    if version := report.tool.get("mi-audit"):
        driver["version"] = version
    return driver


def _rule(finding: Finding) -> Json:
    explained = (
        f"Fails when the evidence shows `{finding.when}`, bounds included; passes when it excludes that; inconclusive "
        f"otherwise. {wording.NO_PROOF}"
    )
    return {
        "id": finding.rule,
        "shortDescription": {"text": f"Model inversion: {finding.when}"},
        "fullDescription": {"text": explained},
        "help": {"text": explained},
        "defaultConfiguration": {"level": "error"},
        "relationships": [
            {"target": _reference(place), "kinds": ["relevant"]} for place in range(len(wording.TAXA))
        ],
        "properties": {"tags": ["security", "privacy", "model-inversion"]},
    }  # fmt: skip


def _result(result: AuditReport | Comparison, finding: Finding, rules: list[str]) -> Json:
    kind = KINDS[finding.state]
    file = quote(findings.location(result))
    found: Json = {
        "ruleId": finding.rule,
        "ruleIndex": rules.index(finding.rule),
        "kind": kind,
        "level": "error" if kind == "fail" else "none",
        "message": _message(f"{finding.when}: {finding.reason}"),
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": file}, "region": {"startLine": 1}}}],
        "partialFingerprints": {"modelAndRule/v1": findings.fingerprint(result, finding.rule, finding.when)},
        "taxa": [_reference(place) for place in range(len(wording.TAXA))],
        "properties": {"numbers": list(finding.numbers)},
    }
    if finding.state == "waived":
        found["suppressions"] = [{"kind": "external", "status": "accepted", "justification": finding.waiver}]
    return found


def _message(text: str) -> Json:
    """A message in which no brace is a placeholder and no bracket a link (section 3.11 of the standard)."""
    return {"text": text.replace("{", "{{").replace("}", "}}").replace("](", "] (")}


def _reference(place: int) -> Json:
    entry = wording.TAXA[place]
    return {"id": entry.id, "index": 0, "toolComponent": {"name": entry.framework, "index": place}}


def _taxonomy(entry: wording.Taxon) -> Json:
    return {
        "name": entry.framework,
        "organization": entry.organization,
        "version": entry.version,
        "informationUri": entry.link,
        "shortDescription": {"text": entry.framework},
        "taxa": [{"id": entry.id, "name": entry.name, "shortDescription": {"text": entry.name}}],
    }


def _invocation(result: AuditReport | Comparison, report: AuditReport) -> Json:
    failed = any(attack.failed for attack in report.attacks)
    notes = [
        {"descriptor": {"id": flag.id}, "level": "note" if flag.passed is None else "warning",
         "message": _message(f"{flag.id}: {flag.detail}{f'; to clear it: {flag.clears}' if flag.clears else ''}")}
        for flag in report.validity if not flag.passed
    ]  # fmt: skip
    return {"executionSuccessful": not failed, "commandLine": result.command, "toolExecutionNotifications": notes}
