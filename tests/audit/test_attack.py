import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_audit.audit import attack as audit_attack
from mi_audit.audit import positive
from mi_audit.audit.attack import run_attack
from mi_audit.audit.defend import run_defense
from mi_audit.audit.plan import AttackPlan, RulePlan
from mi_audit.cli.finish import verdict_code
from mi_audit.core.errors import ConfigError, DataError, TargetError
from mi_audit.core.report import AuditReport, Quantity
from mi_audit.nn.descent import Descent
from mi_audit.store.images import read_png
from mi_audit.store.results import read_result
from mi_audit.store.runs import RunFolder
from mi_audit.store.targets import load_model, save_model
from tests.world import digit_plan


@pytest.fixture(scope="module")
def run(digits: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AuditReport]:
    out = tmp_path_factory.mktemp("audit") / "run"
    return out, run_attack(digit_plan(digits, out, cache))


def test_the_saved_result_is_the_returned_one(run):
    assert read_result(run[0]) == run[1]


def test_every_attack_and_the_control_measure_every_class_and_seed(run):
    report = run[1]
    assert [attack.name for attack in report.attacks] == [
        "gmi", "ppa", "control:random-prior", "control:permuted-labels:gmi", "control:permuted-labels:ppa",
    ]  # fmt: skip
    for attack in report.attacks:
        accuracy = attack.measurement("attack_acc1")
        assert {(row.label, row.seed) for row in accuracy.per_class} == {(0, 0), (0, 1), (3, 0), (3, 1)}
        assert accuracy.count == sum(row.count for row in accuracy.per_class)
        assert not attack.failed


def test_the_control_never_asks_the_target_and_the_attacks_do(run):
    by_name = {attack.name: attack for attack in run[1].attacks}
    assert by_name["control:random-prior"].queries == {}
    assert by_name["gmi"].queries["white-box"] > 0 and by_name["ppa"].queries["score"] > 0


def test_what_is_measured_is_what_was_written(run):
    out, report = run
    model = load_model(report.targets[0].ref).target()
    with RunFolder(out) as folder:
        jobs = [folder.read_job(file.stem) for file in sorted((out / "jobs").glob("gmi-s0-c0003*"))]
    ((tensors, _),) = jobs
    pictures = torch.stack([read_png(out / f"images/gmi/s0/0003-{place}.png") for place in range(2)])
    assert torch.equal(pictures, tensors["images"])
    accepted = model.labels(pictures.float() / 255) == 3
    assert torch.equal(accepted, tensors["accepted"])


def test_target_acceptance_is_the_share_of_accepted_pictures(run):
    out, report = run
    with RunFolder(out) as folder:
        jobs = [folder.read_job(file.stem) for file in (out / "jobs").glob("gmi-*")]
    shares = torch.cat([tensors["accepted"] for tensors, _ in jobs]).float()
    assert report.attacks[0].measurement("target_acceptance").value == pytest.approx(float(shares.mean()))


def test_pictures_and_their_nearest_private_images_exist(run):
    out, report = run
    for attack in report.attacks[:3]:
        assert [picture.label for picture in attack.pictures] == [0, 3]
        for picture in attack.pictures:
            assert (out / picture.file).is_file() and (out / picture.nearest).is_file()
    assert (out / report.priors[0].samples).is_file()


def test_a_repeated_run_reads_its_jobs_and_gives_the_same_bytes(run, digits: Path, cache: Path):
    out, _ = run
    before = (out / "result.json").read_bytes()
    stamps = {file: file.stat().st_mtime_ns for file in (out / "jobs").iterdir()}
    run_attack(digit_plan(digits, out, cache))
    assert (out / "result.json").read_bytes() == before
    assert {file: file.stat().st_mtime_ns for file in (out / "jobs").iterdir()} == stamps


def test_clock_time_is_kept_out_of_the_result(run):
    timing = json.loads((run[0] / "timing.json").read_text())
    assert timing["total_seconds"] > 0 and any(name.startswith("gmi") for name in timing["jobs"])
    assert "seconds" not in (run[0] / "result.json").read_text()


def test_results_do_not_depend_on_the_chunks_of_classes(run, digits: Path, cache: Path, tmp_path: Path):
    report = run_attack(replace(digit_plan(digits, tmp_path / "run", cache), chunk=2))
    for whole, cut in zip(report.attacks, run[1].attacks, strict=True):
        for name in ("attack_acc1",) if "permuted" in whole.name else ("attack_acc1", "knn_l2sq_min"):
            ours = np.array([row.value for row in whole.measurement(name).per_class])
            theirs = np.array([row.value for row in cut.measurement(name).per_class])
            np.testing.assert_allclose(ours, theirs, rtol=0.02)


def test_without_pictures_nothing_that_shows_a_person_is_left(digits: Path, cache: Path, tmp_path: Path):
    plan = digit_plan(digits, tmp_path / "run", cache)
    report = run_attack(replace(plan, images="none", seeds=1, attacks=plan.attacks[:1]))
    assert not list((tmp_path / "run").rglob("*.png")) and not (tmp_path / "run/jobs").exists()
    assert all(attack.pictures == () for attack in report.attacks)
    assert (tmp_path / "run/result.json").is_file()


def test_the_gate_of_the_plan_is_judged(digits: Path, cache: Path, tmp_path: Path):
    plan = digit_plan(digits, tmp_path / "run", cache)
    rules = (RulePlan(id="MI001", when="attack_acc1 > -0.5"),)
    report = run_attack(replace(plan, seeds=1, attacks=plan.attacks[:1], rules=rules))
    assert report.verdict.outcome == "FAIL"


def test_an_exhausted_query_budget_fails_the_jobs_and_is_listed(digits: Path, cache: Path, tmp_path: Path):
    plan = replace(digit_plan(digits, tmp_path / "run", cache), max_queries=5, seeds=1)
    report = run_attack(plan)
    assert all("at most 5 queries" in failed for attack in report.attacks[:2] for failed in attack.failed)
    assert report.attacks[0].measurements == () and report.attacks[0].failed


def test_nan_in_one_class_is_listed_the_others_go_on_and_the_exit_code_says_so(digits, cache, tmp_path, monkeypatch):
    found = Descent._gradient

    def broken(search, latents, labels, *given):
        identity, gradient = found(search, latents, labels, *given)
        return identity.masked_fill(labels == 3, float("nan")), gradient

    plan = replace(digit_plan(digits, tmp_path / "run", cache), seeds=1, controls=())
    plan = replace(plan, attacks=plan.attacks[:1])
    with monkeypatch.context() as patch:
        patch.setattr(Descent, "_gradient", broken)
        report = run_attack(plan)
    (failed,) = report.attacks[0].failed
    assert failed.startswith("gmi-s0-c0003-0003") and "[3]" in failed
    assert {row.label for row in report.attacks[0].measurement("attack_acc1").per_class} == {0}
    assert [picture.label for picture in report.attacks[0].pictures] == [0]
    assert verdict_code(report, False) == verdict_code(report, True) == 4
    assert verdict_code(run_attack(plan), False) == 0  # typed again


def test_an_untrained_model_is_not_audited(digits: Path, cache: Path, tmp_path: Path):
    model = load_model(str(digits))
    for weight in model.classifier.net.parameters():
        weight.data.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.1)
    save_model(tmp_path / "broken.safetensors", model, {})
    with pytest.raises(TargetError, match="above chance"):
        run_attack(digit_plan(tmp_path / "broken.safetensors", tmp_path / "run", cache))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"private": None}, DataError, "--private"),
        ({"public": None}, DataError, "--public"),
        ({"classes": "0-9"}, ConfigError, "classes from 0 to 4"),
        ({"attacks": ()}, ConfigError, "at least one attack"),
        ({"attacks": (AttackPlan(name="gni"),)}, ConfigError, "did you mean 'gmi'"),
        ({"device": "cuda:99"}, ConfigError, "exists here"),
        ({"private": "digits:0-3"}, TargetError, "4 classes"),
        ({"size": 48}, ConfigError, "32, 64 or 128"),
        ({"evaluator": "the target"}, ConfigError, "not the target"),
    ],
)
def test_a_plan_that_cannot_work_says_so(digits, cache, tmp_path, changes, error, message):
    changes = {"evaluator": str(digits)} if changes.get("evaluator") else changes
    with pytest.raises(error, match=message):
        run_attack(replace(digit_plan(digits, tmp_path / "run", cache), **changes))


@pytest.mark.parametrize("command", [run_attack, run_defense])
def test_a_metric_that_does_not_exist_is_refused_before_anything_is_loaded(command, digits, cache, tmp_path):
    plan = replace(digit_plan(digits, tmp_path / "run", cache), metrics=("attack-accuracy", "exposur"))
    with pytest.raises(ConfigError, match="did you mean 'exposure'"):
        command(plan)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def nothing_slow(monkeypatch):
    monkeypatch.setattr("mi_audit.audit.attack.load_court", None)
    monkeypatch.setattr("mi_audit.audit.defend.public_start", None)


@pytest.mark.usefixtures("nothing_slow")
def test_an_untrained_control_that_cannot_be_built_is_refused_at_once(digits, cache, tmp_path, monkeypatch):
    found = (
        replace(load_model(str(digits)), model_kwargs={"width": 3}),
        Quantity(value=1.0, unit="share", count=1, counted="images"),
    )
    monkeypatch.setattr(audit_attack, "identify", lambda *_: found)
    plan = digit_plan(digits, tmp_path / "run", cache)
    with pytest.raises(ConfigError, match=r"without arguments for the control `untrained`"):
        run_attack(replace(plan, controls=("untrained",)))
    with pytest.raises(TypeError):  # on to the judges
        run_attack(replace(plan, controls=("random",)))


@pytest.mark.usefixtures("nothing_slow")
@pytest.mark.parametrize("command", [run_attack, run_defense])
def test_a_positive_control_that_cannot_be_made_is_refused_at_once(command, digits, cache, tmp_path, monkeypatch):
    def refuse(scene):
        raise ConfigError(f"{len(scene.splits.train.classes)} classes")

    monkeypatch.setattr(positive, "check_people", refuse)
    plan = digit_plan(digits, tmp_path / "run", cache)
    with pytest.raises(ConfigError, match="5 classes"):
        command(replace(plan, positive_control=True))
    with pytest.raises(TypeError):
        command(replace(plan, positive_control=False))


def test_an_evaluator_of_the_same_architecture_is_a_warning(digits: Path, cache: Path, tmp_path: Path):
    plan = digit_plan(digits, tmp_path / "run", cache)
    report = run_attack(replace(plan, evaluator_arch="built-in:cnn", seeds=1, attacks=plan.attacks[:1]))
    assert any("share the architecture" in warning for warning in report.warnings)


def test_views_are_settings_of_white_box_attacks_and_make_other_jobs(run, digits: Path, cache: Path, tmp_path: Path):
    plan = replace(digit_plan(digits, tmp_path / "run", cache), seeds=1, classes="3", controls=(), views=2)
    report = run_attack(replace(plan, attacks=plan.attacks[:1]))
    averaged, plain = report.attacks[0], next(one for one in run[1].attacks if one.name == "gmi")
    assert averaged.settings == plain.settings | {"averaged_views": 2, "averaged_kind": "taa"}
    assert averaged.work["target_backward"] == 2 * averaged.work["generator_backward"]
    ids = [
        file.stem.rpartition("-")[2] for out in (run[0], tmp_path / "run") for file in out.glob("jobs/gmi-s0-c0003*")
    ]
    assert len(ids) == len(set(ids)) == 2
    assert not any("--views" in text for text in report.warnings)


def test_views_without_a_white_box_attack_are_noted(digits: Path, cache: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("mi_audit.audit.attack.averaging_of", lambda *_: None)
    plan = replace(digit_plan(digits, tmp_path / "run", cache), seeds=1, classes="3", controls=(), views=2)
    report = run_attack(replace(plan, attacks=plan.attacks[:1]))
    assert any(text.startswith("--views changed nothing") for text in report.warnings)
    assert "averaged_views" not in report.attacks[0].settings


def test_an_attack_without_a_prior_is_audited_like_the_others(digits: Path, cache: Path, tmp_path: Path):
    settings = {"images": 2, "coarse_steps": 6, "steps": 6, "warm_up": 2, "flip": 0.0}
    alone = (AttackPlan(name="deep-inversion", settings=settings),)
    plan = replace(digit_plan(digits, tmp_path / "run", cache), seeds=1, classes="3", attacks=alone)
    report = run_attack(plan)
    assert [one.name for one in report.attacks] == ["deep-inversion", "control:random-prior:pixels"]
    assert not any(one.failed for one in report.attacks) and report.attacks[0].prior == "pixels"
    assert [prior.settings["recipe"].partition(":")[0] for prior in report.priors] == ["no prior"]
    assert report.attacks[0].queries == {"score": 2, "white-box": 24}


def test_savings_make_other_jobs_and_are_told(run, digits: Path, cache: Path, tmp_path: Path):
    plan = replace(digit_plan(digits, tmp_path / "run", cache), seeds=1, classes="3", controls=())
    report = run_attack(replace(plan, early_stop=True, halving=True))
    for attack in report.attacks:
        plain = next(one for one in run[1].attacks if one.name == attack.name)
        assert ("early_stop_window" in attack.settings, "early_stop_window" in plain.settings) == (True, False)
        assert ("halving" in attack.settings) is (attack.name == "ppa") and plain.steps == ()
        (steps,) = attack.steps
        assert steps.asked == attack.settings["steps"] and steps.rows == attack.settings["restarts"]
        assert attack.work["generator_backward"] == pytest.approx(steps.mean * steps.rows)
        names = {file.name for out in (run[0], tmp_path / "run") for file in out.glob(f"jobs/{attack.name}-s0-c0003*")}
        assert len(names) == 2
    assert any("--early-stop" in text for text in report.limits)
    assert not any("--early-stop" in text for text in run[1].limits)
    (file,) = (tmp_path / "run").glob("jobs/gmi-s0-c0003*.safetensors")
    assert [entry["stage"] for entry in RunFolder(tmp_path / "run").read_job(file.stem)[1]["steps"]]
