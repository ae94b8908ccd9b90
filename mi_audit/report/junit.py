"""JUnit XML: one testcase per attack and rule, with the numbers where every viewer shows them."""

import re
from textwrap import shorten
from typing import TYPE_CHECKING

from mi_audit.core.report import AuditReport, Comparison
from mi_audit.report import findings, view, wording
from mi_audit.report.findings import Finding

if TYPE_CHECKING:
    from junitparser import TestCase

ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold
SUITE = "mi-audit"
LONGEST = 200  # characters of the reason in a name; the body has all of it


def junit(result: AuditReport | Comparison) -> str:
    """The verdict as JUnit XML.

    A failed rule is a `failure`, an inconclusive one an `error`, since viewers take a skipped test for a passed one. A
    waived failure is `skipped`, as is the only testcase of a result that was not gated.
    """
    from junitparser import JUnitXml, Skipped, TestCase, TestSuite

    suite = TestSuite(SUITE)
    for finding in findings.by_attack(result):
        suite.add_testcase(_case(result, finding))
    if result.verdict is None:
        case = TestCase("no gate rule was given, so nothing was gated", SUITE)
        case.result = Skipped("not gated", "not-gated")
        suite.add_testcase(case)
    document = JUnitXml(SUITE)
    document.add_testsuite(suite)
    document.update_statistics()
    return f'<?xml version="1.0" encoding="utf-8"?>\n{document.tostring().decode()}\n'


def _case(result: AuditReport | Comparison, finding: Finding) -> "TestCase":
    from junitparser import Error, Failure, Skipped, TestCase

    _, after = view.sides(result)
    model = after.targets[0].ref if after.targets else "no model"
    name = f"{finding.title} ({shorten(finding.reason, LONGEST, placeholder=' ...')})"
    case = TestCase(_clean(name), _clean(f"{SUITE}.{model}"))
    kinds = {"fail": (Failure, "leak"), "review": (Failure, "review"), "open": (Error, "inconclusive")}
    kinds["waived"] = (Skipped, "waived")
    body = _clean("\n".join([finding.reason, *finding.numbers, wording.NO_PROOF]))
    if finding.state == "pass":
        case.system_out = body
        return case
    kind, type_name = kinds[finding.state]
    case.result = kind(_clean(finding.waiver or finding.reason), type_name)
    case.result[0].text = body
    return case


def _clean(text: str) -> str:
    return ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)
