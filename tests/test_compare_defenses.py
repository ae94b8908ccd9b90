import argparse
import re
import sys
from dataclasses import replace

import pytest

from examples import compare_defenses
from mi_audit.audit import retrain
from mi_audit.audit.plan import AttackPlan
from mi_audit.core.report import Interval, Quantity
from tests.report import sample
from tests.world import SMOKE

BRIEF = {"gmi-gan": {"steps": 4, "batch_size": 16}}


@pytest.fixture
def script(monkeypatch, tmp_path, cache, capsys):
    """Runs the example on a toy of its plan, and counts the models that it trains."""
    planned, fit, trained = compare_defenses.planned, retrain.fit_private, []

    def small(given, views):
        gmi = (AttackPlan(name="gmi", settings=SMOKE["gmi"]),)
        plan = replace(planned(given, views), attacks=gmi, prior_settings=BRIEF, evaluator_epochs=2, precision="32")
        return replace(plan, controls=())

    def counted(scene, how, *others):
        trained.append(how.composition.method)
        return fit(scene, how, *others)

    monkeypatch.setattr(compare_defenses, "planned", small)
    monkeypatch.setattr(retrain, "fit_private", counted)

    def run(*words):
        common = ("--arch", "built-in:cnn", "--seeds", "1", "--epochs", "1", "--classes", "0,3")
        folders = ("--out", str(tmp_path / "out"), "--cache-dir", str(cache))
        monkeypatch.setattr(sys, "argv", ["compare_defenses.py", "digits", *common, *folders, *words])
        compare_defenses.main()
        return capsys.readouterr().out

    return run, trained


def table(text, head):
    lines = text[text.index(f"| {head} |") :].split("\n\n")[0].strip().splitlines()
    return [line.split("|")[1].strip() for line in lines[2:]]


def test_an_attack_takes_its_own_settings():
    given = ["gmi.steps=150", "ppa.keep=3", "ppa.flips=true", "if-gmi.steps=[2, 1]"]
    assert compare_defenses.settings_of("gmi", False, given) == {"steps": 150}
    assert compare_defenses.settings_of("ppa", True, given) == {"flips": True, "keep": 3}
    assert compare_defenses.settings_of("if-gmi", True, given) == {"flips": False, "steps": [2, 1]}
    assert compare_defenses.settings_of("ppa", True, []) == {"flips": False}


def test_the_table_shows_the_distance_of_sets_under_whatever_name_it_was_measured():
    attack = sample.attack("gmi", 0.5)
    distance = replace(
        attack.measurements[0], name="fid_evaluator", value=12.5, unit="squared feature distance", interval=None
    )
    assert compare_defenses.cells_of(replace(attack, measurements=(distance,))) == ["-", "-", "-", "12.5"]
    assert compare_defenses.DISTANCES[compare_defenses.distance_of(replace(attack, measurements=(distance,)))] != "FID"
    exact = replace(distance, name="fid", value=7.0)
    assert compare_defenses.cells_of(replace(attack, measurements=(distance, exact)))[-1] == "7"


def test_what_sums_of_rounding_leave_is_nothing():
    found = Quantity(
        value=-7.4e-18, unit="share", count=5, counted="pairs",
        interval=Interval(low=-0.24, high=1.48e-17, level=0.95, method="by hand"),
    )  # fmt: skip
    assert compare_defenses.share(found, signed=True) == "+0 [-24, 0]"
    assert compare_defenses.share(replace(found, value=0.095, interval=None)) == "9.5"


def test_changes_that_leave_zero_stand_out_in_the_figure():
    found = sample.comparison()  # GMI finds less for certain, PPA perhaps
    drawn = compare_defenses.changes({"one": found, "two": found})
    assert drawn == compare_defenses.changes({"one": found, "two": found})
    lines = re.findall(r'style="fill: none; stroke: (#\w+); stroke-width: 1.4', drawn.decode())
    assert lines == ["#20714a"] * 2 + ["#1f5a80"] * 2
    assert b"stroke-width: 1.4" not in compare_defenses.changes({"one": replace(found, changes=())})


@pytest.mark.parametrize("wrong", ["gmmi.steps=150", "ppa.steps=9", "gmi.steps", "gmi=3", "loft.rank=3"])
def test_a_setting_of_no_attack_is_refused(script, wrong):
    with pytest.raises(SystemExit):
        script[0]("--attacks", "gmi", "--method", "bido", "--set", wrong)
    with pytest.raises(SystemExit):
        script[0]("--attacks", "gmi", "--sweep", "freeze=0%", "--set", "bido.kind=hsic")


def test_a_defense_takes_its_own_settings(tmp_path):
    said = ["gmi.steps=9", "loft.rank=2", "bido.lambda_x=0.5"]
    given = argparse.Namespace(
        what="digits", private="digits:0-4", public="digits:5-9", arch="built-in:cnn", method="calor,tldmi+bido,atat",
        sweep=None, attacks="gmi", set=said, classes="all", seeds=3, epochs=None, train_batch_size=None,
        evaluator_epochs=None, precision="32", out=tmp_path, cache_dir=None,
    )  # fmt: skip
    found = compare_defenses.planned(given, 1).defend.settings
    assert found["loft"] == {"rank": 2} and found["bido"] == {"lambda_x": 0.5}
    assert found["atat"] == {"accept_fragility": True} and not {"gmi", "tldmi"} & set(found)


@pytest.mark.slow
def test_every_number_of_views_attacks_the_same_models(script, tmp_path):
    run, trained = script
    drawn = ("--figures", str(tmp_path / "figures"))
    said = run("--method", "midre,negls", "--views", "1,2", *drawn)
    assert sorted(trained) == ["midre", "negls", "none"]
    assert table(said, "defense") == ["none", "midre", "negls"]
    plain, averaged = said.split("2 views per gradient")
    assert "plain" in plain and table(averaged, "defense") == ["none", "midre", "negls"]
    for kind in ("undefended", "defended"):
        files = [tmp_path / "out" / f"views-{n}" / "negls" / "models" / f"{kind}-s0.safetensors" for n in (1, 2)]
        assert files[0].read_bytes() == files[1].read_bytes()
    again = run("--method", "midre,negls", "--views", "1,2")
    assert len(trained) == 3 and again == said  # what is finished is kept
    assert {one.name for one in (tmp_path / "figures").iterdir()} == {"changes-1.svg", "changes-2.svg"}


@pytest.mark.slow
def test_the_curve_of_freeze_points_has_the_fisher_profile_beside_it(script, tmp_path):
    run, trained = script
    said = run("--sweep", "freeze=0%,50%", "--views", "1", "--figures", str(tmp_path / "figures"))
    assert sorted(trained) == ["none", "tldmi", "tldmi"]
    assert table(said, "freeze") == ["none", "0%", "50%"]
    units = table(said, "unit")
    assert len(units) > 2 and (tmp_path / "out" / "fisher" / "fisher.json").is_file()
    assert said.strip().endswith("| head |") and "| 100% |" in said
    assert {one.name for one in (tmp_path / "figures").iterdir()} == {"curve-1.svg", "fisher.svg"}
