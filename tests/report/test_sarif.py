import json
from pathlib import Path

import jsonschema
import pytest

from mi_audit.report.sarif import sarif
from tests.report import sample

SCHEMA = json.loads(Path(__file__).with_name("sarif-schema-2.1.0.json").read_text(encoding="utf-8"))
HOSTILE = "<img src=x> {0} [a](b) \ud800 %"


def run(result):
    text = sarif(result)
    log = json.loads(text)
    jsonschema.Draft7Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(log)
    assert text == sarif(result) and len(log["runs"]) == 1
    return log["runs"][0]


@pytest.mark.parametrize(
    "result",
    [sample.audit(), sample.trusted(), sample.comparison(), sample.comparison(verdict=sample.decided())],
    ids=["ungated", "audit", "comparison", "judged comparison"],
)
def test_every_result_follows_the_schema_of_the_standard(result):
    run(result)


def test_the_schema_would_notice():
    log = json.loads(sarif(sample.trusted()))
    log["runs"][0]["results"][0]["kind"] = "maybe"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(log, SCHEMA)


def test_one_result_per_rule_with_kind_and_level():
    found = run(sample.trusted(verdict=sample.decided("INCONCLUSIVE")))
    assert [(r["ruleId"], r["kind"], r["level"]) for r in found["results"]] == [
        ("audit-v1", "open", "none"),
        ("MI002", "fail", "error"),
    ]
    assert [rule["id"] for rule in found["tool"]["driver"]["rules"]] == ["audit-v1", "MI002"]
    assert [r["ruleIndex"] for r in found["results"]] == [0, 1]
    assert found["results"][1]["message"]["text"] == "attack_acc1 > 0.5: ppa: 0.68 [0.57, 0.79], limit 0.5"
    assert run(sample.trusted())["results"][0]["kind"] == "pass"


def test_suspected_copies_are_reviewed_and_waivers_suppress():
    rule = sample.RuleResult(id="copies", when="near_duplicates > 0", outcome="FAIL", reason="2 pictures")
    (result,) = run(sample.audit(verdict=sample.Verdict(outcome="FAIL", rules=(rule,))))["results"]
    assert (result["kind"], result["level"]) == ("review", "none")
    waived = run(sample.trusted(verdict=sample.decided(waivers=(sample.waiver(),))))["results"][1]
    assert waived["suppressions"] == [
        {
            "kind": "external",
            "status": "accepted",
            "justification": "internal use only, says the owner; until 2027-01-31",
        }
    ]


def test_location_and_fingerprint_survive_another_run_of_the_same_weights():
    one, other = run(sample.trusted())["results"][1], run(sample.trusted(id="other", device="cuda"))["results"][1]
    assert one["partialFingerprints"] == other["partialFingerprints"]
    assert one["partialFingerprints"] != run(sample.trusted())["results"][0]["partialFingerprints"]
    assert one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "face.safetensors"
    spaced = sample.trusted(targets=(sample.model(0.9, ref="my models/face.pt"),))
    assert run(spaced)["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == (
        "my%20models/face.pt"
    )


def test_taxa_point_into_the_taxonomies():
    found = run(sample.trusted())
    for taxon in found["results"][0]["taxa"]:
        component = found["taxonomies"][taxon["toolComponent"]["index"]]
        assert component["name"] == taxon["toolComponent"]["name"]
        assert component["taxa"][taxon["index"]]["id"] == taxon["id"]
    assert [t["id"] for t in found["results"][0]["taxa"]] == ["NISTAML.032", "AML.T0024.001", "ML03:2023"]


def test_checks_that_did_not_pass_are_notifications():
    (invocation,) = run(sample.trusted())["invocations"]
    assert [(n["descriptor"]["id"], n["level"]) for n in invocation["toolExecutionNotifications"]] == [
        ("G3 NOT_CONVERGED", "warning"),
        ("G4 BB_BEATS_WB", "note"),
    ]
    assert "to clear it: raise steps" in invocation["toolExecutionNotifications"][0]["message"]["text"]
    assert invocation["executionSuccessful"]
    failed = sample.audit(attacks=(sample.attack("gmi", 0.1, failed=("gmi-s0: out of memory",)),))
    assert not run(failed)["invocations"][0]["executionSuccessful"]


def test_repeated_rule_ids_share_a_rule():
    rule = sample.RuleResult(id="MI001", when="accuracy < 0.9", outcome="PASS", reason="r")
    found = run(sample.audit(verdict=sample.Verdict(outcome="PASS", rules=(rule, rule))))
    assert [r["ruleIndex"] for r in found["results"]] == [0, 0] and len(found["tool"]["driver"]["rules"]) == 1


def test_hostile_text_and_no_class_name():
    rule = sample.RuleResult(id=HOSTILE, when=HOSTILE, outcome="FAIL", reason=HOSTILE)
    (result,) = run(sample.audit(verdict=sample.Verdict(outcome="FAIL", rules=(rule,)), command=HOSTILE))["results"]
    assert "{{0}} [a] (b)" in result["message"]["text"]
    text = sarif(sample.trusted(classes=("Ada", "Bob", "Cleo", "Dan", "Eve")))
    assert not any(word in text for word in ("Ada", "Cleo", ".png", "base64"))
