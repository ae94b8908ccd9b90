import hashlib

import pytest

from mi_audit.report import findings
from tests.report import sample


def test_one_finding_per_rule_and_per_attack():
    result = sample.trusted()
    assert [(f.rule, f.attack, f.state) for f in findings.by_rule(result)] == [
        ("audit-v1", "", "pass"),
        ("MI002", "", "fail"),
    ]
    assert [(f.rule, f.attack, f.state) for f in findings.by_attack(result)] == [
        ("audit-v1", "", "pass"),
        ("MI002", "gmi", "open"),
        ("MI002", "ppa", "fail"),
    ]
    assert findings.by_attack(result)[1].title == "MI002 GMI: attack_acc1 > 0.5"


def test_nothing_gated_gives_no_finding():
    assert findings.by_rule(sample.audit()) == findings.by_attack(sample.audit()) == ()


def test_numbers_are_of_the_attack_that_was_asked_for():
    result = sample.trusted()
    of_gmi, of_all = findings.numbers(result, "gmi"), findings.numbers(result)
    assert of_gmi[0] == "GMI: attack_acc1 46.0% [35.0, 57.0] of 60 reconstructions"
    assert all(line.startswith("GMI: ") for line in of_gmi)
    assert of_all[: len(of_gmi)] == of_gmi and of_all[-1] == "model: accuracy 98.5% [96.5, 100.0]"
    assert not any("fid" in line for line in of_all)


def test_a_waiver_holds_for_failures_of_its_rule_only():
    waived = sample.trusted(verdict=sample.decided(waivers=(sample.waiver(),)))
    assert [f.state for f in findings.by_attack(waived)] == ["pass", "open", "waived"]
    assert findings.by_rule(waived)[1].waiver == "internal use only, says the owner; until 2027-01-31"
    unused = sample.trusted(verdict=sample.decided(waivers=(sample.waiver(applied=False, status="expired"),)))
    assert [f.state for f in findings.by_rule(unused)] == ["pass", "fail"]


def test_a_pass_that_proves_nothing_is_open_on_every_attack():
    parts = tuple(sample.AttackOutcome(attack=name, outcome="PASS", reason="below") for name in ("gmi", "ppa"))
    reason = "would pass, but the evaluator is weak"
    rule = sample.RuleResult(id="MI001", when="attack_acc1 > 0.9", outcome="INCONCLUSIVE", reason=reason, attacks=parts)
    found = findings.by_attack(sample.audit(verdict=sample.Verdict(outcome="INCONCLUSIVE", rules=(rule,))))
    assert [(f.attack, f.state, f.reason) for f in found] == [("gmi", "open", reason), ("ppa", "open", reason)]


def test_suspected_copies_are_for_a_person_to_review():
    rule = sample.RuleResult(id="copies", when="near_duplicates > 0", outcome="FAIL", reason="2 pictures")
    (found,) = findings.by_rule(sample.audit(verdict=sample.Verdict(outcome="FAIL", rules=(rule,))))
    assert found.state == "review"


@pytest.mark.parametrize(
    ("ref", "file"),
    [
        ("dist/face.safetensors", "dist/face.safetensors"),
        ("dist\\face.PT", "dist/face.PT"),
        ("/home/somebody/face.safetensors", findings.SETTINGS_FILE),
        ("../face.safetensors", findings.SETTINGS_FILE),
        ("C:\\models\\face.pt", findings.SETTINGS_FILE),
        ("https://host/face.pt", findings.SETTINGS_FILE),
        ("timm:resnet18", findings.SETTINGS_FILE),
        ("trained by mi-audit", findings.SETTINGS_FILE),
    ],
)
def test_the_location_is_a_file_inside_the_checkout(ref, file):
    assert findings.location(sample.audit(targets=(sample.model(0.9, ref=ref),))) == file


def test_fingerprints_depend_on_weights_and_parts_only():
    one = findings.fingerprint(sample.audit(), "MI001")
    assert one == hashlib.sha256(("9d" * 32 + "\nMI001").encode()).hexdigest()
    assert one == findings.fingerprint(sample.audit(gmi=0.1, id="other"), "MI001")
    assert one != findings.fingerprint(sample.audit(), "MI002")
    assert one != findings.fingerprint(sample.audit(targets=(sample.model(0.9, sha256="00" * 32),)), "MI001")


def test_pseudonyms_are_stable_and_say_nothing():
    expected = f"id-{hashlib.sha256(b'mi-audit class Ada').hexdigest()[:10]}"
    assert findings.pseudonym("Ada") == expected
    assert findings.pseudonym("\ud800").startswith("id-")
