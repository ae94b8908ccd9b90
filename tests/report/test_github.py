import re

from mi_audit.report.github import MOST, command, github
from tests.report import sample


def test_one_line_per_rule_the_worst_first():
    place = "file=face.safetensors,title=mi-audit"
    assert github(sample.trusted()).splitlines() == [
        f"::error {place} MI002::FAIL: attack_acc1 > 0.5: ppa: 0.68 [0.57, 0.79], limit 0.5",
        f"::notice {place} audit-v1::PASS: exposure > 0.1: 3 of 300 identities are exposed",
    ]


def test_inconclusive_and_waived_rules_are_warnings():
    text = github(sample.trusted(verdict=sample.decided("INCONCLUSIVE", waivers=(sample.waiver(),))))
    assert [line.partition(" ")[0] for line in text.splitlines()] == ["::warning", "::warning"]
    assert "INCONCLUSIVE: exposure" in text and "(waived: internal use only, says the owner; until 2027-01-31)" in text


def test_what_would_end_a_command_is_escaped():
    assert command("error", "100%: a,b\r\n::stop::", title="a,b:c%\n") == (
        "::error title=a%2Cb%3Ac%25%0A::100%25: a,b%0D%0A::stop::"
    )
    assert command("notice", "x") == "::notice::x"


def test_hostile_rules_and_models_stay_on_their_line():
    hostile = "x\n::set-output name=a::b,c:d"
    rule = sample.RuleResult(id=hostile, when=hostile, outcome="FAIL", reason=hostile)
    verdict = sample.Verdict(outcome="FAIL", rules=(rule,))
    text = github(sample.audit(verdict=verdict, targets=(sample.model(0.9, ref=f"{hostile}.pt"),)))
    assert len(text.splitlines()) == 1 and re.fullmatch(r"::error file=[^:,]+,title=[^:,]+::.*\n", text)


def test_no_more_than_are_shown_and_nothing_gated_is_said():
    rule = sample.RuleResult(id="MI001", when="accuracy < 0.9", outcome="FAIL", reason="r")
    many = sample.Verdict(outcome="FAIL", rules=(rule,) * (MOST + 1))
    assert github(sample.audit(verdict=many)).count("\n") == MOST
    assert github(sample.audit()) == "::notice title=mi-audit::No gate rule was given, so nothing was gated.\n"
