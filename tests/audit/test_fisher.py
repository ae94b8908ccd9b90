import json
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from mi_audit.audit.attack import build_attacks
from mi_audit.audit.fisher import DEFINITIONS, LOCAL, _open, cautions, first_cut, fisher_folder, run_fisher
from mi_audit.audit.plan import AttackPlan, FisherPlan, ModelPlan, Plan
from mi_audit.audit.progress import Silent
from mi_audit.core.errors import ConfigError, DataError
from mi_audit.core.fisher import FisherReport, InversionFacts
from mi_audit.nn import fisher
from mi_audit.store.datasets import load_splits
from mi_audit.store.results import to_json
from mi_audit.store.targets import load_model
from tests.report.sample import model as some_model

BRIEF = {"images": 2, "coarse_steps": 8, "steps": 8, "warm_up": 2, "flip": 0.0}


def digit_profile(model, out, cache, **more):
    plan = Plan(
        model=ModelPlan(ref=str(model)),
        private="digits:0-4",
        size=32,
        attacks=(AttackPlan(name="deep-inversion", settings=BRIEF),),
        profile="quick",
        out=out,
        cache=cache,
        command="mi-audit fisher",
    )
    return FisherPlan(plan=replace(plan, **more), samples=12, moments=3, people=3)


@pytest.fixture(scope="module")
def found(digits, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fisher")
    return run_fisher(digit_profile(digits, folder / "run", cache)), folder / "run"


def test_profile_of_a_digit_model(found, digits):
    report, _ = found
    assert report.kind == "fisher" and report.units[-1].stage == "" and report.units[-1].kind == "Linear"
    assert [(one.labels, one.scale) for one in report.profiles] == list(DEFINITIONS)
    for one in report.profiles:
        assert len(one.values) == len(report.units)
        assert one.values[-1].cumulative_cls == pytest.approx(1) and one.values[-1].cumulative_mi == pytest.approx(1)
        assert all(row.ratio_interval.low <= row.ratio_interval.high for row in one.values)
    assert (report.freeze is None) == (report.profiles[0].cut == 0)
    assert report.samples == 12
    made = report.inversion
    assert made.source == "attack" and made.weak and made.attacks == ("deep-inversion",) and made.priors == ("pixels",)
    assert made.identities == 3 and made.images == 12 and made.moments == 4
    assert report.cautions[0] == LOCAL and "Weak profile" in report.cautions[1]


def test_the_shown_profile_is_that_of_the_parts(found, digits):
    """The classification side, computed again from the data without the engine."""
    report, _ = found
    loaded = load_model(str(digits))
    val = load_splits("digits:0-4", 32, 1).val
    rows = fisher.parts(loaded.classifier, torch.zeros(1, 1, 32, 32))
    assert [row.name for row in rows] == [unit.name for unit in report.units]
    assert len({int(label) for label in val.labels}) == 5
    picked = torch.tensor(sorted(_spread(val.labels, 12)))
    squares = fisher.empirical(loaded.classifier, val.images(picked), val.labels[picked], rows).plain.mean(0)
    wanted = squares / torch.tensor([row.size for row in rows])
    assert [row.fisher_cls for row in report.profiles[0].values] == pytest.approx(wanted.tolist(), rel=1e-4)
    exact = fisher.expected(loaded.classifier, val.images(picked), rows).plain.mean(0)
    totals = next(one for one in report.profiles if (one.labels, one.scale) == ("true", "total"))
    assert [row.fisher_cls for row in totals.values] == pytest.approx(exact.tolist(), rel=1e-4)


def _spread(labels, limit):
    """Round robin over the classes, then evenly over the images of each."""
    groups = [(labels == label).nonzero().squeeze(1).tolist() for label in range(5)]
    counts = [limit // 5 + (place < limit % 5) for place in range(5)]
    return [group[i * len(group) // count] for group, count in zip(groups, counts, strict=True) for i in range(count)]


def test_is_written_whole_and_read_back(found):
    report, folder = found
    text = (folder / "fisher.json").read_text()
    assert text == to_json(report)
    assert TypeAdapter(FisherReport).validate_json(text) == report
    assert json.loads((folder / "plan.json").read_text())["fisher"]["samples"] == 12
    assert "fisher inversion" in json.loads((folder / "timing.json").read_text())["stages"]


def test_a_resumed_run_attacks_no_one_again_and_says_the_same(found, digits, cache, monkeypatch):
    report, folder = found
    monkeypatch.setattr("mi_audit.audit.inversions._perform", lambda *_given: pytest.fail("attacked again"))
    assert run_fisher(digit_profile(digits, folder, cache)) == report


def test_the_first_cut_of_a_model_at_hand_is_that_of_its_profile(found, digits, cache, tmp_path):
    report, _ = found
    wanted = digit_profile(digits, tmp_path / "run", cache)
    with _open(wanted, Silent()) as scene:
        shown, stages = first_cut(scene, scene.model, build_attacks(wanted.plan), samples=12, moments=3)
    assert stages == tuple(unit.stage for unit in report.units[:-1])
    assert shown.labels == "empirical" and shown.scale == "mean" and len(shown.values) == len(stages) + 1
    assert [row.fisher_cls for row in shown.values] == [row.fisher_cls for row in report.profiles[0].values]


def test_with_pictures_off_none_is_left_behind(digits, cache, tmp_path):
    wanted = digit_profile(digits, tmp_path / "run", cache, images="none", classes="0,3")
    report = run_fisher(replace(wanted, moments=0))
    assert report.inversion.moments == 1 and any("end of each search" in text for text in report.cautions)
    assert not list((tmp_path / "run").rglob("*.png")) and not (tmp_path / "run" / "jobs").exists()


def test_refuses_what_cannot_work_before_anything_is_loaded(digits, cache, tmp_path):
    wanted = digit_profile(digits, tmp_path / "run", cache)
    with pytest.raises(DataError, match=r"expected public images for the prior of gmi, got none; give --public"):
        run_fisher(replace(wanted, plan=replace(wanted.plan, attacks=(AttackPlan(name="gmi"),))))
    with pytest.raises(DataError, match="give --private"):
        run_fisher(replace(wanted, plan=replace(wanted.plan, private=None)))
    with pytest.raises(ConfigError, match="samples >= 2"):
        run_fisher(replace(wanted, samples=1))
    assert not (tmp_path / "run").exists()


def test_the_folder_is_named_by_what_is_measured(digits, cache):
    wanted = digit_profile(digits, None, cache)
    again = replace(wanted, plan=replace(wanted.plan, device="cpu", fresh=True))
    assert fisher_folder(wanted) == fisher_folder(again) != fisher_folder(replace(wanted, samples=13))
    assert fisher_folder(wanted).name.startswith("fisher-digits-")


def test_cautions_name_what_is_wrong(found):
    report, _ = found
    good = InversionFacts(
        source="run", run="r", attacks=("gmi",), priors=("gmi-gan",), weak=False, moments=11, images=200,
        identities=20, accepted=0.99,
    )  # fmt: skip
    same = (report.profiles[0],) * 2
    plain = replace(some_model(0.9), defense={"method": "none"})
    assert cautions(plain, good, same, 20) == (LOCAL,)
    said = cautions(
        replace(plain, defense={"method": "tldmi"}),
        replace(good, accepted=0.5, moments=1),
        (replace(same[0], cut=1), replace(same[0], cut=2, scale="total")),
        4,
    )
    for wanted in (
        "accepts 50%",
        "end of each search",
        "4 people",
        "empirical, mean: 1; empirical, total: 2",
        "defense",
    ):
        assert any(wanted in text for text in said), wanted
