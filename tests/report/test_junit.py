import xml.etree.ElementTree as ElementTree

import pytest

from tests.report import sample

pytest.importorskip("junitparser")
from mi_audit.report.junit import junit

HOSTILE = "<img src=x> & ]]> \x00\x1b \ud800"


def cases(result):
    root = ElementTree.fromstring(junit(result).encode())
    return root, root.findall("testsuite/testcase")


def test_one_testcase_per_attack_and_rule():
    root, found = cases(sample.trusted())
    assert [case.get("name") for case in found] == [
        "audit-v1: exposure > 0.1 (3 of 300 identities are exposed)",
        "MI002 GMI: attack_acc1 > 0.5 (0.46 [0.35, 0.57], limit 0.5)",
        "MI002 PPA: attack_acc1 > 0.5 (0.68 [0.57, 0.79], limit 0.5)",
    ]
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3", "failures": "1", "errors": "1", "skipped": "0",
    }  # fmt: skip


def test_inconclusive_is_an_error_and_a_leak_a_failure_with_numbers_in_the_body():
    _, (passed, unsure, failed) = cases(sample.trusted())
    assert [child.tag for child in passed] == ["system-out"]
    assert [(child.tag, child.get("type")) for child in unsure] == [("error", "inconclusive")]
    assert [(child.tag, child.get("type")) for child in failed] == [("failure", "leak")]
    assert failed[0].get("message") == "0.68 [0.57, 0.79], limit 0.5"
    assert "PPA: attack_acc1 68.0% [57.0, 79.0] of 60 reconstructions" in failed[0].text
    assert "GMI" not in failed[0].text and "no proof of anonymity" in failed[0].text


def test_a_waiver_is_skipped_with_its_reason():
    _, found = cases(sample.trusted(verdict=sample.decided(waivers=(sample.waiver(),))))
    assert [child.tag for child in found[2]] == ["skipped"]
    assert found[2][0].get("message") == "internal use only, says the owner; until 2027-01-31"


def test_nothing_gated_is_one_skipped_testcase():
    _, found = cases(sample.audit())
    assert len(found) == 1 and found[0][0].tag == "skipped" and "nothing was gated" in found[0].get("name")


def test_hostile_text_is_legal_xml():
    rule = sample.RuleResult(id=HOSTILE, when=HOSTILE, outcome="FAIL", reason=HOSTILE)
    verdict = sample.Verdict(outcome="FAIL", rules=(rule,))
    _, (case,) = cases(sample.audit(verdict=verdict, targets=(sample.model(0.9, ref=HOSTILE),)))
    assert "<img src=x> & ]]> \ufffd\ufffd \ufffd" in case.get("name")


def test_long_reasons_are_cut_in_the_name_and_whole_in_the_body():
    rule = sample.RuleResult(id="MI001", when="accuracy < 0.9", outcome="FAIL", reason="word " * 100)
    _, (case,) = cases(sample.audit(verdict=sample.Verdict(outcome="FAIL", rules=(rule,))))
    assert len(case.get("name")) < 240 and case.get("name").endswith(" ...)")
    assert "word " * 100 in case[0].text


def test_no_class_name_and_no_picture():
    text = junit(sample.trusted(classes=("Ada", "Bob", "Cleo", "Dan", "Eve")))
    assert not any(word in text for word in ("Ada", "Cleo", ".png", "base64"))
