import json

import pytest

from mi_audit.audit.fisher import fisher_plan_to_json
from mi_audit.audit.plan import AttackPlan, FisherPlan, ModelPlan, Plan
from mi_audit.store.runs import RunFolder
from tests.report.test_fisher import sample


@pytest.fixture
def engine(monkeypatch):
    seen = []
    monkeypatch.setattr("mi_audit.audit.fisher.run_fisher", lambda wanted, _progress: seen.append(wanted) or sample())
    return seen


def test_prints_the_profile_and_writes_the_figure(cli, engine, tmp_path):
    done = cli("fisher", "m.safetensors", "--private", "p", "--public", "q", "--out", "here")
    assert done.exit_code == 0, done.output
    assert "Begin at --freeze 67%" in done.stdout and "layer2.0" in done.stdout
    assert (tmp_path / "here" / "fisher.svg").read_bytes().count(b"<svg") == 1
    assert (tmp_path / "here" / "fisher.png").read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "here" / "report.html"
    assert "<svg" in page.read_text() and page.stat().st_mode & 0o077 == 0
    assert "here/report.html" in done.stderr
    (wanted,) = engine
    assert wanted.plan.attacks == (AttackPlan(name="gmi"),) and wanted.plan.profile == "quick"
    assert (wanted.run, wanted.samples, wanted.moments, wanted.people) == (None, 400, 10, 20)


def test_without_public_images_there_is_no_prior(cli, engine):
    cli("fisher", "m.safetensors", "--private", "p", "--set", "attacks.deep-inversion.steps=7")
    assert engine[0].plan.attacks == (AttackPlan(name="deep-inversion", settings={"steps": 7}),)


def test_a_run_is_taken_with_all_its_attacks_or_those_named(cli, engine):
    cli("fisher", "m.safetensors", "--private", "p", "--run", "runs/latest", "--samples", "50", "--moments", "2")
    wanted = engine[0]
    assert (wanted.run, wanted.samples, wanted.moments, wanted.plan.attacks) == ("runs/latest", 50, 2, ())
    assert wanted.plan.command == (
        "mi-audit fisher m.safetensors --private p --run runs/latest --samples 50 --moments 2"
    )
    cli("fisher", "m.safetensors", "--private", "p", "--run", "runs/latest", "--attacks", "ppa")
    assert [attack.name for attack in engine[1].plan.attacks] == ["ppa"]


def test_what_is_said_is_obeyed(cli, engine):
    cli(
        "fisher",
        "m",
        "--private",
        "p",
        "--public",
        "q",
        "--classes",
        "all",
        "--profile",
        "standard",
        "--attacks",
        "ppa",
    )
    wanted = engine[0]
    assert wanted.people > 10**6 and wanted.samples == 2000 and wanted.plan.profile == "standard"
    assert [attack.name for attack in wanted.plan.attacks] == ["ppa"]


def test_json_is_one_document(cli, engine):
    done = cli("fisher", "m.safetensors", "--private", "p", "--json")
    found = json.loads(done.stdout)
    assert found["kind"] == "fisher" and found["freeze"] == "67%" and len(found["profiles"][0]["values"]) == 4


def test_goes_on_where_it_was_interrupted(cli, tmp_path, digits, cache, monkeypatch):
    words = ("fisher", str(digits), "--private", "digits:0-4", "--size", "32", "--classes", "0,1", "--samples", "4",
             "--cache-dir", str(cache), "--out", "run", "--moments", "1",
             "--set", "attacks.deep-inversion.coarse_steps=4", "--set", "attacks.deep-inversion.steps=4",
             "--set", "attacks.deep-inversion.warm_up=1")  # fmt: skip
    first = cli(*words, "--json")
    assert first.exit_code == 0, first.output
    again = cli("resume", "run", "--json")
    assert again.exit_code == 0 and again.stdout == first.stdout
    found = json.loads(first.stdout)
    assert found["inversion"]["weak"] and found["inversion"]["identities"] == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("fisher", "--private", "p"), 2, "expected a model to audit"),
        (("fisher", "m", "--samples", "1"), 2, "samples"),
        (("fisher", "missing.safetensors", "--private", "digits:0-4"), 3, "missing.safetensors"),
        (("fisher", "m", "--out", "o"), 3, "give --private"),
    ],
)
def test_exit_codes(cli, words, code, message):
    done = cli(*words)
    assert done.exit_code == code and message in done.output


def test_help_has_examples(cli):
    done = cli("fisher", "--help")
    assert done.exit_code == 0 and "--run" in done.output and "runs/latest" in done.output
    assert "--metrics" not in done.output and "--evaluator" not in done.output


@pytest.fixture
def unfinished(tmp_path):
    """Writes the plan of a profile with changes of what is its own."""

    def write(**changes):
        plan = Plan(model=ModelPlan(ref="m.safetensors"), private="p", command="mi-audit fisher")
        saved = fisher_plan_to_json(FisherPlan(plan=plan))
        with RunFolder(tmp_path / "run") as folder:
            folder.write_plan({**saved, "fisher": {**saved["fisher"], **changes}})

    return write


@pytest.mark.parametrize("words", [("--report", "json:profile.json"), ("--exit-zero",)])
def test_what_a_profile_does_not_heed_is_refused(cli, engine, unfinished, words):
    unfinished()
    done = cli("resume", "run", *words)
    assert done.exit_code == 2 and "expected neither --report nor --exit-zero for the profile" in done.output
    assert not engine
    assert cli("resume", "run").exit_code == 0 and len(engine) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"depth": 3}, "expected a plan of a profile of this version"), ({"samples": "many"}, "got samples: ")],
)
def test_a_plan_of_another_version_is_refused(cli, engine, unfinished, changes, message):
    unfinished(**changes)
    done = cli("resume", "run")
    assert done.exit_code == 2 and message in " ".join(done.output.split())
    assert not engine
