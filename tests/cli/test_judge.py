import json
import subprocess
import sys

import pytest

from mi_audit.core.sweep import Advice
from mi_audit.store.results import read_result, write_result
from tests.documents import ROOT
from tests.report.sample import audit, comparison, draw_pictures, failing
from tests.report.test_fisher import sample as profile
from tests.report.test_sweep import sweep


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


def test_a_damaged_timing_costs_a_warning_not_the_report(cli, saved):
    (saved / "plain" / "timing.json").write_text("{")
    done = cli("report", "plain", "-f", "text")
    assert done.exit_code == 0 and done.stdout
    assert done.stderr.startswith("warning: expected seconds by stage and job, got a damaged file")


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


@pytest.fixture
def others(saved):
    """A sweep with the run of its recommended value, and a Fisher profile, in folders of their own."""
    for name in ("sweep", "sweep/80%", "undecided", "fisher"):
        (saved / name).mkdir()
    write_result(saved / "sweep" / "sweep.json", sweep())
    nothing = Advice(value=None, tied=(), tolerance=0.02, why="All is noise.")
    write_result(saved / "undecided" / "sweep.json", sweep(advice=nothing))
    write_result(saved / "sweep" / "80%" / "result.json", comparison())
    write_result(saved / "fisher" / "fisher.json", profile())
    return saved


@pytest.mark.parametrize(
    ("run", "kind", "text"),
    [
        ("sweep", "text", "80% leaks least"),
        ("sweep/sweep.json", "markdown", "| **80%** | 96.0% [95.0, 97.0] | 25.0% [20.0, 30.0] | front |"),
        ("sweep", "html", "<h1>tldmi: freeze</h1>"),
        ("sweep", "json", '"kind": "sweep"'),
        ("fisher", "text", "Begin at --freeze"),
        ("fisher/fisher.json", "markdown", "| unit | parameters | share, classification |"),
        ("fisher", "html", "Which layers matter for what"),
        ("fisher", "json", '"kind": "fisher"'),
    ],
)
def test_report_shows_sweeps_and_profiles(cli, others, run, kind, text):
    done = cli("report", run, "-f", kind)
    assert done.exit_code == 0 and text in done.stdout
    assert cli("report", run, "-f", kind, "-o", "page").exit_code == 0
    assert text in (others / "page").read_text()


@pytest.mark.parametrize("run", ["sweep", "fisher"])
def test_report_refuses_formats_that_say_nothing_about_them(cli, others, run):
    done = cli("report", run, "-f", "sarif")
    assert done.exit_code == 2 and "expected one of the formats html, markdown, text, json for a" in done.stderr


@pytest.mark.parametrize("run", ["sweep", "sweep/sweep.json"])
def test_gate_judges_the_recommended_value_of_a_sweep(cli, others, run):
    done = cli("gate", run, "--fail-on", "attack_acc1 > 0.10")
    assert done.exit_code == 1
    assert "judging: sweep/80%, the run of the recommended value freeze 80%" in done.stderr
    assert cli("gate", run, "--fail-on", "attack_acc1 > 0.99").exit_code == 0
    assert "judging" not in cli("gate", run, "--fail-on", "attack_acc1 > 0.99", "-q").stderr


def test_gate_on_what_cannot_be_judged_says_what_can(cli, others):
    undecided, profiled = (cli("gate", run, "--fail-on", "attack_acc1 > 0.9") for run in ("undecided", "fisher"))
    assert undecided.exit_code == profiled.exit_code == 3
    assert "All is noise; judge one of its runs, such as undecided/40%" in undecided.stderr
    assert "got a Fisher profile in fisher, which measures no leak" in profiled.stderr


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ("sweep", "got the sweep sweep; give the run of one of its values, such as sweep/80%"),
        ("sweep/sweep.json", "got the sweep sweep/sweep.json; give the run of one of its values, such as sweep/80%"),
        ("undecided", "got the sweep undecided; give the run of one of its values\n"),
        ("fisher/fisher.json", "got a Fisher profile in fisher/fisher.json"),
    ],
)
def test_what_is_no_run_cannot_be_compared(cli, others, run, text):
    done = cli("compare", run, "plain")
    assert done.exit_code == 3 and text in done.stderr


@pytest.mark.parametrize("words", ["report sweep -f html", "report fisher", "gate sweep --fail-on attack_acc1>0.99"])
def test_showing_and_judging_saved_files_loads_no_torch(others, words):
    command, run, *more = words.split()
    code = (
        "import sys; from mi_audit.cli.main import app\ntry: app(sys.argv[1:], prog_name='mi-audit')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    told = [sys.executable, "-c", code, command, str(others / run), *more]
    done = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
