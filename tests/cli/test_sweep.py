import json

import pytest

from mi_audit.audit.estimate import Estimate
from mi_audit.cli.sweep import exit_code
from tests.report.test_sweep import point, sweep


@pytest.fixture
def engine(monkeypatch):
    """`run_sweep` replaced by a canned result; `seen` are the plans it was asked to run."""

    class Engine:
        def __init__(self):
            self.seen, self.result = [], sweep(failures=())

        def __call__(self, plan, progress):
            self.seen.append(plan)
            progress.stage("Sweep")
            return self.result

    engine = Engine()
    monkeypatch.setattr("mi_audit.audit.sweep.run_sweep", engine)
    return engine


def test_a_sweep_prints_the_table_and_writes_page_and_plot(cli, engine, tmp_path):
    done = cli("defend", "m", "--sweep", "freeze=40%,80%", "--tolerance", "3", "--out", "run")
    assert done.exit_code == 0, done.output
    (plan,) = engine.seen
    assert (plan.defend.sweep, plan.defend.tolerance) == ("freeze=40%,80%", 3.0)
    assert plan.command == "mi-audit defend m --sweep freeze=40%,80% --tolerance 3.0"
    assert "80% leaks least" in done.stdout and "plot: run/sweep.png" in done.stderr
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "run" / "sweep.svg").read_bytes()


def test_json_is_one_document(cli, engine):
    done = cli("defend", "m", "--sweep", "freeze=40%,80%", "--out", "run", "--json")
    assert json.loads(done.stdout)["kind"] == "sweep"


def test_reports_of_a_sweep(cli, engine, tmp_path):
    words = ["defend", "m", "--sweep", "freeze=40%", "--out", "run"]
    assert cli(*words, "--report", "text:t.txt", "--report", "json:j.json", "--report", "html:h.html").exit_code == 0
    assert "leaks least" in (tmp_path / "t.txt").read_text()
    assert json.loads((tmp_path / "j.json").read_text())["parameter"] == "freeze"
    done = cli(*words, "--report", "sarif:s.sarif")
    assert (
        done.exit_code == 2
        and "html, markdown, text, json for a sweep, got sarif" in done.stderr
        and len(engine.seen) == 1
    )


def test_a_wrong_grid_is_a_usage_error(cli, engine):
    done = cli("defend", "m", "--sweep", "freeze=80", "--out", "run")
    assert done.exit_code == 2 and "expected --freeze none" in done.stderr and not engine.seen


def test_the_setting_stands_in_a_file_too(cli, engine, tmp_path):
    (tmp_path / "mi-audit.toml").write_text('version = 1\n[model]\nref = "m"\n[defend]\nsweep = "freeze"\n')
    assert cli("defend", "--out", "run").exit_code == 0
    assert engine.seen[0].defend.sweep == "freeze"


def test_attack_knows_no_sweep(cli):
    assert cli("attack", "m", "--sweep", "freeze").exit_code == 2


def test_dry_run_shows_the_grid_and_the_time_of_all_values(cli, engine, monkeypatch):
    found = Estimate((("model", "cnn"), ("in all", "about 100 s")), 100.0, 4)
    asked = []
    monkeypatch.setattr("mi_audit.audit.estimate.estimate", lambda plan, *_more: asked.append(plan) or found)
    done = cli("defend", "m", "--sweep", "freeze=40%,60%,80%", "--dry-run")
    assert done.exit_code == 0 and not engine.seen
    assert "freeze: 40%, 60%, 80%" in done.stdout and "at most about 5 min 0 s" in done.stdout
    assert asked[0].defend.freeze == "40%" and asked[0].defend.sweep is None
    shown = json.loads(cli("defend", "m", "--sweep", "epochs=1,2", "--dry-run", "--json").stdout)
    assert shown["sweep"] == {"parameter": "epochs", "values": ["1", "2"]}
    assert (shown["seconds"], shown["seconds_per_value"], shown["jobs"]) == (200.0, 100.0, 8)


def test_an_interrupted_sweep_is_resumed_as_a_sweep(cli, engine, tmp_path):
    from mi_audit.audit.plan import DefendPlan, ModelPlan, Plan
    from mi_audit.audit.settings import plan_to_json
    from mi_audit.store.runs import RunFolder

    plan = Plan(model=ModelPlan(ref="m"), defend=DefendPlan(sweep="freeze=40%"), out=tmp_path / "run")
    with RunFolder(tmp_path / "run") as folder:
        folder.write_plan({"kind": "defend", "plan": plan_to_json(plan)})
    assert cli("resume", "run").exit_code == 0
    assert engine.seen[0].defend.sweep == "freeze=40%"


@pytest.mark.parametrize(
    ("verdicts", "failed", "code"),
    [((None, None), (), 0), (("FAIL", "PASS"), (), 0), (("PASS", "FAIL"), (), 1), (("PASS", "PASS"), ("ppa",), 4)],
)
def test_the_exit_code_is_the_gates_on_the_recommended_value(verdicts, failed, code):
    points = tuple(
        point(v, 0.97, 0.5, verdict=verdict, failed=failed) for v, verdict in zip(("40%", "80%"), verdicts, strict=True)
    )
    assert exit_code(sweep(points=points, failures=())) == code
    assert exit_code(sweep(points=points, failures=()), exit_zero=True) == (4 if failed else 0)


def test_the_exit_code_without_a_recommendation_and_with_a_failure():
    from mi_audit.core.sweep import Advice

    undecided = Advice(value=None, tied=(), tolerance=0.02, why="")
    points = (point("40%", 0.97, 0.5, verdict="PASS"),)
    assert exit_code(sweep(points=points, failures=(), advice=undecided)) == 5
    assert exit_code(sweep()) == 4
