from dataclasses import replace

import pytest

from mi_audit.report.markdown import LARGEST, code, escape, markdown
from tests.report import sample


def rows(text):
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("result", [sample.audit(verdict=sample.failing()), sample.comparison()])
def test_tables_are_rectangular_and_pictures_absent(result):
    text = markdown(result)
    assert "![" not in text and "<img" not in text and "base64" not in text
    for line, following in zip(rows(text), rows(text)[1:], strict=False):
        if set(following) <= set("|- "):
            assert line.count("|") == following.count("|")


def test_verdict_rule_and_reason_come_first():
    text = markdown(sample.audit(verdict=sample.failing()))
    assert text.startswith("## 🔴 mi-audit: Fail\n")
    assert "| Fail | MI001 | `attack_acc1 > 0.10` |" in text


def test_before_after_difference_and_meaning():
    line = next(
        line for line in rows(markdown(sample.comparison())) if line.startswith("| PPA | Attack accuracy, top-1")
    )
    assert "| 68.0% [57.0, 79.0] | 59.0% [48.0, 70.0] |" in line
    assert "| no significant change | 12.0% [7.0, 17.0] |" in line


def test_nothing_gated_is_said():
    assert "nothing was gated" in markdown(sample.audit())


def test_hostile_names_stay_text():
    hostile = "<img src=x onerror=alert(1)> | [x](http://y) `z` @all\n# h"
    text = markdown(sample.audit(warnings=(hostile,), overlap=hostile, targets=(sample.model(0.9, ref=hostile),)))
    assert "<img" not in text and "[x](" not in text and "\n# h" not in text and "@all" not in text


def test_code_survives_backticks_and_pipes():
    assert code("a`b|c") == "``a`b\\|c``"
    assert code("`a") == "`` `a ``"


def test_escape_leaves_words_alone():
    assert escape("plain words, 5.0 and more: yes") == "plain words, 5.0 and more: yes"


def test_a_huge_result_is_cut_at_a_line():
    huge = sample.audit()
    huge = replace(huge, attacks=tuple(replace(huge.attacks[0], name=f"attack-{k}" * 5) for k in range(200)))
    text = markdown(huge)
    assert len(text.encode()) <= LARGEST and text.endswith("`result.json`.\n")


def test_checks_and_verifier_are_there():
    text = markdown(sample.trusted())
    assert "| Not passed | G3 NOT\\_CONVERGED | the target accepts 71% of the reconstructions | raise steps" in text
    assert "| Passed | G2 ZERO\\_GRAD |" in text and "| Not checked | G4" in text
    assert "accepts 0.4% [0.1, 1.0] of impostor pairs and 93.0% [87.0, 97.0] of genuine pairs. Small and" in text


def test_how_controls_were_made_is_said():
    assert "How controls were made" not in markdown(sample.trusted())
    floor = replace(sample.control(), name="control:counterfactual:ppa", note="Trained without them.")
    text = markdown(sample.audit(attacks=(sample.attack("ppa", 0.3), floor)))
    assert "- Control counterfactual: Trained without them." in text
