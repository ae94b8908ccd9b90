from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from mi_audit.audit.gate import judge
from mi_audit.audit.plan import RulePlan, WaiverPlan
from tests.report import sample

RULES = (RulePlan(id="MI001", when="attack_acc1 > 0.1"), RulePlan(id="MI002", when="accuracy < 0.5"))
TODAY = date(2026, 6, 30)
WAIVER = WaiverPlan(id="MI001", model_sha256="9d" * 32, expires=TODAY, reason="accepted by J. Doe")


def verdict(*waivers, today=TODAY, **facts):
    return judge(sample.audit(**facts), RULES, waivers=waivers, today=today)


def test_a_waived_failure_no_longer_counts_and_stays_visible():
    assert verdict().outcome == "FAIL"
    found = verdict(WAIVER)
    assert found.outcome == "PASS" and found.rules[0].outcome == "FAIL"
    (waiver,) = found.waivers
    assert (waiver.applied, waiver.status, waiver.expires) == (True, "applied", "2026-06-30")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model_sha256": "00" * 32}, "other weights"),
        ({"expires": date(2026, 6, 29)}, "expired on 2026-06-29"),
        ({"id": "MI003"}, "no rule of that id"),
        ({"id": "MI002"}, "not needed: the rule is PASS"),
    ],
)
def test_a_waiver_that_does_not_fit_is_listed_and_does_nothing(change, status):
    found = verdict(replace(WAIVER, **change))
    assert found.outcome == "FAIL" and not found.waivers[0].applied and status in found.waivers[0].status


def test_one_waiver_of_several_is_enough_and_the_others_are_listed():
    found = verdict(replace(WAIVER, expires=date(2020, 1, 1)), WAIVER)
    assert found.outcome == "PASS" and [waiver.applied for waiver in found.waivers] == [False, True]


def test_every_model_of_an_audit_has_to_be_waived():
    two = (sample.model(0.9), sample.model(0.9, sha256="ab" * 32))
    assert verdict(WAIVER, targets=two).outcome == "FAIL"
    assert "not all models" in verdict(WAIVER, targets=two).waivers[0].status
    assert verdict(WAIVER, replace(WAIVER, model_sha256="ab" * 32), targets=two).outcome == "PASS"


def test_a_model_cannot_excuse_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("dist", "export/deep"):
        Path(folder).mkdir(parents=True)
    Path("dist/model.safetensors").touch()

    def outcome(model, source):
        return verdict(replace(WAIVER, source=source), targets=(sample.model(0.9, ref=model),)).outcome

    assert outcome("dist/model.safetensors", "dist/mi-audit.toml") == "FAIL"
    assert outcome("dist/model.safetensors", str(tmp_path / "dist" / "mi-audit.toml")) == "FAIL"
    assert outcome("dist/model.safetensors", "mi-audit.toml") == "PASS"
    assert outcome("local-dir:export", "export/deep/waivers.toml") == "FAIL"
    assert outcome("hf-hub:someone/export", "export/waivers.toml") == "PASS"


def test_a_model_cannot_excuse_itself_when_it_is_judged_from_elsewhere(tmp_path, monkeypatch):
    for folder in ("project/dist", "project/export/deep", "elsewhere", "project/a:b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "project/dist/model.safetensors").touch()
    (tmp_path / "project/a:b/model.safetensors").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def outcome(model, source):
        waiver = replace(WAIVER, source=str(tmp_path / "project" / source))
        return verdict(waiver, targets=(sample.model(0.9, ref=model),)).outcome

    assert outcome("dist/model.safetensors", "dist/mi-audit.toml") == "FAIL"
    assert outcome("dist/model.safetensors", "mi-audit.toml") == "PASS"
    assert outcome("local-dir:export", "export/deep/waivers.toml") == "FAIL"
    assert outcome("../export", "export/waivers.toml") == "FAIL"
    assert outcome("export", "dist/waivers.toml") == "PASS"
    assert outcome("a:b/model.safetensors", "a:b/waivers.toml") == "FAIL"
    assert outcome("timm:export", "export/waivers.toml") == "PASS"
    monkeypatch.chdir(tmp_path / "project")
    assert outcome("a:b/model.safetensors", "a:b/waivers.toml") == "FAIL"


def test_waivers_end_with_the_day_in_utc():
    now = datetime.now(UTC).date()
    assert verdict(replace(WAIVER, expires=now + timedelta(days=1)), today=None).outcome == "PASS"
    assert verdict(replace(WAIVER, expires=now - timedelta(days=2)), today=None).outcome == "FAIL"
