import json

import pytest

from mi_audit.store.results import read_result, write_result
from tests.report.sample import audit, comparison, draw_pictures, failing


@pytest.fixture
def saved(tmp_path):
    for name, result in {"run": audit(verdict=failing()), "pair": comparison(), "plain": audit()}.items():
        (tmp_path / name).mkdir()
        write_result(tmp_path / name / "result.json", result)
    return tmp_path


@pytest.mark.parametrize(
    ("rule", "code"),
    [("attack_acc1 > 0.9", 0), ("attack_acc1 > 0.10", 1), ("attack_acc1 > 0.7", 5)],
)
def test_gate_judges_by_the_rules_given(cli, saved, rule, code):
    assert cli("gate", "plain", "--fail-on", rule).exit_code == code


def test_exit_zero_forgives(cli, saved):
    assert cli("gate", "plain", "--fail-on", "attack_acc1 > 0.10", "--exit-zero").exit_code == 0


def test_gate_takes_the_rules_of_the_config_before_those_of_the_run(cli, saved):
    assert cli("gate", "run").exit_code == 1
    (saved / "mi-audit.toml").write_text("[[gate]]\nid = 'MI7'\nwhen = 'attack_acc1 > 0.9'")
    done = cli("gate", "run", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["verdict"]["rules"][0]["id"] == "MI7"


def test_gate_without_any_rule_exits_2(cli, saved):
    done = cli("gate", "plain")
    assert done.exit_code == 2
    assert "give --fail-on" in done.stderr


def test_gate_against_a_baseline(cli, saved):
    assert cli("gate", "plain", "--baseline", "plain", "--max-regression", "0.5").exit_code == 0


def test_gate_writes_reports_and_leaves_the_result_alone(cli, saved):
    before = (saved / "plain" / "result.json").read_bytes()
    cli("gate", "plain", "--fail-on", "attack_acc1 > 0.10", "--report", "json:judged.json")
    assert read_result(saved / "judged.json").verdict.outcome == "FAIL"
    assert (saved / "plain" / "result.json").read_bytes() == before


@pytest.mark.parametrize("words", [("gate", "nowhere"), ("report", "nowhere"), ("compare", "nowhere", "plain")])
def test_nothing_to_judge_exits_3(cli, saved, words):
    done = cli(*words)
    assert done.exit_code == 3
    assert done.stderr.startswith("error: expected a result file or a run folder")


def test_report_formats_on_standard_output(cli, saved):
    assert cli("report", "plain", "-f", "json").stdout == (saved / "plain" / "result.json").read_text()
    assert cli("report", "plain", "-f", "markdown").stdout.startswith("#")
    assert "<html" in cli("report", "plain/result.json", "-f", "html").stdout
    assert "GMI" in cli("report", "plain").stdout


def test_report_into_a_file(cli, saved):
    draw_pictures(saved / "plain")
    done = cli("report", "plain", "-f", "html", "-o", "r.html")
    assert done.exit_code == 0, done.output
    assert "data:image/png" in (saved / "r.html").read_text()
    assert done.stdout == ""
    cli("report", "plain", "-f", "html", "-o", "r.html", "--no-images")
    assert "data:image/png" not in (saved / "r.html").read_text()


def test_report_in_an_unknown_format_exits_2(cli, saved):
    assert cli("report", "plain", "-f", "pdf").exit_code == 2


def test_report_where_nothing_can_be_written_exits_4(cli, saved):
    assert cli("report", "plain", "-f", "html", "-o", "plain/result.json/r.html").exit_code == 4


def test_compare_two_runs(cli, saved):
    document = json.loads(cli("compare", "plain", "pair", "--json").stdout)
    assert document["kind"] == "comparison"
    assert document["after"] == json.loads((saved / "pair" / "result.json").read_text())["after"]
    assert cli("compare", "plain", "pair", "--report", "markdown:c.md").exit_code == 0
    assert (saved / "c.md").is_file()


def test_machine_formats(cli, saved):
    assert json.loads(cli("report", "plain", "-f", "sarif").stdout)["version"] == "2.1.0"
    assert cli("report", "plain", "-f", "github").stdout.startswith("::")
    assert cli("report", "plain", "-f", "model-card").stdout.startswith("---\ntags:")


def test_annotations_come_with_a_step_summary(cli, saved, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(saved / "summary.md"))
    cli("report", "plain", "-f", "sarif")
    assert not (saved / "summary.md").exists()
    cli("report", "plain", "-f", "github")
    assert (saved / "summary.md").read_text().startswith("## ")


def test_reports_on_standard_output(cli, saved):
    done = cli("gate", "plain", "--fail-on", "attack_acc1 > 0.10", "--report", "github:-")
    assert done.exit_code == 1 and "\n::error " in f"\n{done.stdout}"
    assert cli("gate", "plain", "--fail-on", "attack_acc1 > 0.10", "--report", "sarif:-", "--json").exit_code == 2


def test_names_can_be_left_out_of_the_page(cli, saved):
    assert ">three<" in cli("report", "plain", "-f", "html").stdout
    assert ">three<" not in cli("report", "plain", "-f", "html", "--no-names").stdout


def test_gate_by_exposure_decides_and_is_repeated(cli, saved):
    from tests.audit.test_audit_v1 import audit as exposing

    (saved / "people").mkdir()
    for exposed, code in ((5, 0), (30, 1)):
        write_result(saved / "people" / "result.json", exposing(exposed))
        assert cli("gate", "people", "--policy", "audit-v1").exit_code == code
    assert cli("gate", "people", "--policy", "audit-v1", "--threshold", "0.4", "--sequential").exit_code == 0
    cli("gate", "people", "--policy", "audit-v1", "--threshold", "0.4", "--report", "json:judged.json")
    (saved / "people" / "result.json").write_bytes((saved / "judged.json").read_bytes())
    again = json.loads(cli("gate", "people", "--json").stdout)["verdict"]
    assert again["exposure"]["tau"] == 0.4 and [rule["id"] for rule in again["rules"]] == [
        "audit-v1",
        "audit-v1-copies",
    ]


def test_a_run_that_was_judged_against_a_baseline_is_not_judged_without_it(cli, saved):
    from tests.audit.test_audit_v1 import audit as exposing

    for name, exposed in (("old", 0), ("new", 8)):
        (saved / name).mkdir()
        write_result(saved / name / "result.json", exposing(exposed))
    assert cli("gate", "new", "--policy", "audit-v1").exit_code == 0
    words = ("--baseline", "old", "--policy", "audit-v1")
    assert cli("gate", "new", *words, "--report", "json:judged.json").exit_code == 1
    (saved / "new" / "result.json").write_bytes((saved / "judged.json").read_bytes())
    for again in ((), ("--policy", "audit-v1")):
        done = cli("gate", "new", *again)
        assert done.exit_code == 2 and "--baseline" in done.stderr
    assert cli("gate", "new", "--baseline", "old").exit_code == 1
    assert cli("gate", "new", "--fail-on", "accuracy < 0.5").exit_code == 0


def test_a_threshold_needs_its_policy(cli, saved):
    done = cli("gate", "run", "--threshold", "0.2")
    assert done.exit_code == 2 and "--policy audit-v1" in done.stderr


def test_gate_takes_waivers_from_the_settings_and_lists_them(cli, saved):
    waiver = "[[waivers]]\nid = 'MI001'\nmodel_sha256 = '{}'\nexpires = {}\nreason = 'accepted by J. Doe'\n"
    (saved / "mi-audit.toml").write_text(waiver.format("9d" * 32, "2999-01-01"))
    done = cli("gate", "run", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["verdict"]["waivers"][0]["applied"]
    (saved / "mi-audit.toml").write_text(waiver.format("9d" * 32, "2020-01-01"))
    done = cli("gate", "run", "--json")
    assert done.exit_code == 1 and "expired" in json.loads(done.stdout)["verdict"]["waivers"][0]["status"]
    assert "MI001" in cli("config", "show").stdout
    (saved / "mi-audit.toml").write_text(waiver.format("short", "2999-01-01"))
    assert "[[waivers]] model_sha256" in cli("gate", "run").stderr
