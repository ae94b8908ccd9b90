import json
from pathlib import Path

import pytest

from mi_audit.audit.defend import composition_of
from mi_audit.audit.estimate import Estimate
from mi_audit.audit.plan import AttackPlan, RulePlan
from mi_audit.audit.settings import plan_to_json
from mi_audit.core.report import Verdict
from mi_audit.store.results import read_result, write_result
from mi_audit.store.runs import RunFolder
from tests.report.sample import attack, audit, comparison, failing

INCONCLUSIVE = Verdict(outcome="INCONCLUSIVE", rules=())


@pytest.fixture
def engine(monkeypatch):
    """The engine replaced by canned results; `seen` are the plans it was asked to run."""
    from mi_audit.audit.scene import run_folder_path

    class Engine:
        def __init__(self):
            self.seen, self.result, self.stop = [], audit(), None

        def run(self, kind, plan, progress):
            self.seen.append((kind, plan))
            folder = run_folder_path(plan, kind)
            with RunFolder(folder) as kept:
                kept.write_plan({"kind": kind, "plan": plan_to_json(plan)})
                progress.stage("Attack")
                if self.stop is not None:
                    raise self.stop
                result = self.result if kind == "attack" else comparison(verdict=self.result.verdict)
                write_result(folder / "result.json", result)
            return result

    engine = Engine()
    monkeypatch.setattr("mi_audit.audit.attack.run_attack", lambda plan, progress: engine.run("attack", plan, progress))
    monkeypatch.setattr(
        "mi_audit.audit.defend.run_defense", lambda plan, progress: engine.run("defend", plan, progress)
    )
    return engine


def test_attack_writes_reports_and_prints_a_summary(cli, engine, tmp_path):
    done = cli("attack", "m.safetensors", "--out", "run", "--private", "p", "--public", "q")
    assert done.exit_code == 0, done.output
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    assert read_result(tmp_path / "run").id == engine.result.id
    assert "GMI" in done.stdout
    assert "report: run/report.html" in done.stderr
    ((kind, plan),) = engine.seen
    assert (kind, plan.model.ref, plan.private, plan.public, plan.out) == (
        "attack",
        "m.safetensors",
        "p",
        "q",
        Path("run"),
    )


def test_every_kind_of_option_reaches_the_plan(cli, engine):
    done = cli(
        "attack", "m", "--attacks", "ppa", "--set", "attacks.ppa.steps=9", "--mean", "0.5,0.5,0.5", "--convert-color",
        "--fail-on", "attack_acc1 > 0.5", "--fail-on", "fid < 3", "--fresh", "--allow-pickle", "--classes", "0-4",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    plan = engine.seen[0][1]
    assert plan.attacks == (AttackPlan(name="ppa", settings={"steps": 9}),)
    assert plan.rules == (RulePlan(id="rule-1", when="attack_acc1 > 0.5"), RulePlan(id="rule-2", when="fid < 3"))
    assert (plan.model.mean, plan.convert_color, plan.fresh, plan.model.allow_pickle) == ((0.5,) * 3, True, True, True)


@pytest.mark.parametrize(("verdict", "code"), [(failing(), 1), (INCONCLUSIVE, 5)])
def test_the_gate_is_the_exit_code_and_can_be_forgiven(cli, engine, verdict, code):
    engine.result = audit(verdict=verdict)
    assert cli("attack", "m", "--out", "run").exit_code == code
    assert cli("attack", "m", "--out", "run", "--exit-zero").exit_code == 0


def test_failed_jobs_are_never_forgiven(cli, engine):
    engine.result = audit(attacks=(attack("gmi", 0.4, failed=("job 1: out of memory",)),))
    assert cli("attack", "m", "--out", "run", "--exit-zero").exit_code == 4


def test_json_is_one_document_and_nothing_else(cli, engine):
    done = cli("attack", "m", "--out", "run", "--json")
    assert json.loads(done.stdout)["kind"] == "audit"
    assert "== Attack" in done.stderr


def test_quiet_leaves_standard_error_empty(cli, engine):
    assert cli("attack", "m", "--out", "run", "-q").stderr == ""


def test_extra_reports_and_the_summary_of_github(cli, engine, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    words = ["--report", "markdown:a.md", "--report", "json:b.json", "--report", "text:c.txt"]
    done = cli("attack", "m", "--out", "run", *words)
    assert done.exit_code == 0, done.output
    markdown = (tmp_path / "a.md").read_text()
    assert (tmp_path / "summary.md").read_text() == "before\n" + markdown
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "run" / "result.json").read_bytes()
    assert "GMI" in (tmp_path / "c.txt").read_text()


@pytest.mark.parametrize("text", ["pdf:x.pdf", "html", "html:"])
def test_a_wrong_report_is_refused_before_the_run(cli, engine, text):
    assert cli("attack", "m", "--report", text).exit_code == 2
    assert not engine.seen


@pytest.mark.parametrize("rule", ["attack_acc1 >", "attack_acc1 > 0.1 > 0", "__import__('os')"])
def test_a_wrong_rule_is_refused_before_the_run(cli, engine, rule):
    assert cli("attack", "m", "--fail-on", rule).exit_code == 2
    assert not engine.seen


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--fail-on", "atack_acc1 > 0.1"], "did you mean 'attack_acc1'?"),
        (["--fail-on", "attack_acc1 - baseline.attack_acc1 > 0"], "give --baseline"),
        (["--max-regression", "0.02"], "give --baseline"),
    ],
)
def test_what_could_not_be_judged_is_refused_before_the_run(cli, engine, words, advice):
    done = cli("attack", "m", *words)
    assert done.exit_code == 2 and advice in done.stderr
    assert not engine.seen


def test_the_undefended_twin_is_a_baseline_and_metrics_of_the_registry_are_known(cli, engine):
    words = ["--fail-on", "baseline.lpips_vgg_min_train - fid > 0", "--max-regression", "0.02"]
    assert cli("defend", "m", *words).exit_code == 0
    assert len(engine.seen) == 1


def test_a_corrected_gate_goes_on_in_the_same_run_folder(tmp_path):
    from mi_audit.audit.plan import ModelPlan, Plan
    from mi_audit.audit.scene import run_folder_path

    plan = Plan(model=ModelPlan(ref="m"))
    asked = Plan(model=plan.model, rules=(RulePlan(id="a", when="fid > 3"),), baseline=tmp_path, max_regression=0.1)
    assert run_folder_path(plan, "attack") == run_folder_path(asked, "attack")
    assert run_folder_path(plan, "attack") != run_folder_path(Plan(model=plan.model, seed=1), "attack")


def test_a_missing_baseline_is_noticed_before_the_run(cli, engine):
    assert cli("attack", "m", "--baseline", "none.json").exit_code == 3
    assert not engine.seen


def test_an_interrupted_run_says_how_to_resume_and_resumes(cli, engine):
    engine.stop = KeyboardInterrupt()
    done = cli("attack", "m", "--classes", "0-4")
    assert done.exit_code == 130
    folder = done.stderr.split("mi-audit resume ")[1].split("`")[0]
    engine.stop = None
    done = cli("resume", folder)
    assert done.exit_code == 0, done.output
    (_, first), (kind, second) = engine.seen
    assert (kind, second.classes, second.out, second.command) == ("attack", "0-4", Path(folder), first.command)


def test_resume_of_a_defense_is_a_defense(cli, engine):
    assert cli("defend", "m", "--out", "run", "--freeze", "60%").exit_code == 0
    assert cli("resume", "run", "--json").exit_code == 0
    assert [kind for kind, _ in engine.seen] == ["defend", "defend"]
    assert engine.seen[1][1].defend.freeze == "60%"


def test_resume_of_nothing_exits_2(cli):
    assert cli("resume", "runs/latest").exit_code == 2


def test_resume_of_a_folder_of_another_kind_exits_2(cli, tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.write_plan({"kind": "something", "plan": {}})
    assert cli("resume", "run").exit_code == 2


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_run_folder_that_cannot_be_written_exits_2(cli, engine, tmp_path, out):
    (tmp_path / "taken").write_text("")
    done = cli("attack", "m", "--out", out)
    assert done.exit_code == 2
    assert "choose another --out" in done.stderr
    assert not engine.seen


def test_a_folder_of_other_things_is_no_run_folder(cli, engine, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").write_text("")
    assert cli("attack", "m", "--out", "photos").exit_code == 2
    assert not engine.seen


def test_defend_passes_its_options(cli, engine):
    done = cli(
        "defend", "m", "--out", "run", "--method", "tldmi", "--epochs", "3", "--lr", "0.1", "--train-batch-size", "8",
        "--augment", "none", "--save", "safe.safetensors", "--pretrained", "timm:resnet18",
        "--set", "defend.settings.share=0.5",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    wanted = engine.seen[0][1].defend
    assert (wanted.epochs, wanted.lr, wanted.batch_size, wanted.pretrained) == (3, 0.1, 8, "timm:resnet18")
    assert wanted.augment == "none"
    assert (wanted.save, wanted.settings) == (Path("safe.safetensors"), {"share": 0.5})


def test_dry_run_prints_the_plan_and_runs_nothing(cli, engine, monkeypatch):
    found = Estimate(rows=(("model", "cnn"), ("evaluator", "about 30 s")), seconds=200.0, jobs=6)
    monkeypatch.setattr("mi_audit.audit.estimate.estimate", lambda *_: found)
    text = cli("attack", "m", "-n").stdout
    assert "evaluator" in text
    assert "3 min 20 s" in text
    document = json.loads(cli("defend", "m", "--dry-run", "--json").stdout)
    assert document == {"plan": {"model": "cnn", "evaluator": "about 30 s"}, "jobs": 6, "seconds": 200.0}
    assert not engine.seen


def test_unknown_attacks_get_a_suggestion(cli, engine):
    done = cli("attack", "m", "--attacks", "gmy")
    assert done.exit_code == 2
    assert "got 'gmy'; did you mean 'gmi'?" in done.stderr


def test_demo(cli, monkeypatch, tmp_path):
    def fake(out, seed, cache, progress):
        assert (tmp_path / "d").is_dir()
        assert (out, seed, cache) == (Path("d"), 7, None)
        return comparison()

    monkeypatch.setattr("mi_audit.audit.demo.run_demo", fake)
    done = cli("demo", "--out", "d", "--seed", "7", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kind"] == "comparison"
    assert (tmp_path / "d" / "report.html").is_file()


def test_an_accelerator_that_is_not_there_exits_2(cli, tmp_path):
    done = cli("attack", "built-in:cnn", "--device", "cuda:99", "--private", "digits:0-4", "--public", "digits:5-9")
    assert done.exit_code == 2
    assert "expected a device that exists here" in done.stderr


def test_a_setting_that_may_be_left_out_is_set_to_none(cli, engine):
    assert cli("defend", "m", "--method", "bido", "--set", "bido.images_per_class=none").exit_code == 0
    ((_, plan),) = engine.seen
    assert composition_of(plan).parts["bido"].images_per_class is None
