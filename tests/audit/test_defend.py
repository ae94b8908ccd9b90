import errno
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mi_audit.audit.attack import run_attack
from mi_audit.audit.defend import copy_model, run_defense
from mi_audit.audit.plan import DefendPlan
from mi_audit.audit.scene import open_scene
from mi_audit.core.errors import ConfigError, StorageError
from mi_audit.core.report import Comparison
from mi_audit.store.results import read_result
from mi_audit.store.targets import load_model
from tests.world import defend_plan, digit_plan


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    out = tmp_path_factory.mktemp("defense") / "run"
    return out, run_defense(defend_plan(out, cache))


def test_both_sides_are_attacked_with_the_same_attacks_classes_and_seeds(run):
    _, result = run
    assert [a.name for a in result.before.attacks] == [a.name for a in result.after.attacks]
    assert result.before.attacked == result.after.attacked == (0, 3)
    assert result.before.targets[0].sha256 != result.after.targets[0].sha256
    assert result.before.evaluator == result.after.evaluator


def test_the_defended_model_keeps_the_public_start_where_it_is_frozen(run):
    out, result = run
    frozen = result.defense["resolved"]["tldmi"]["frozen"]
    defended = load_model(str(out / "models/defended-s0.safetensors")).classifier.state_dict()
    twin = load_model(str(out / "models/undefended-s0.safetensors")).classifier.state_dict()
    assert result.defense["resolved"]["tldmi"]["units_frozen"] == 4 and len(frozen) >= 4
    assert all(not torch.equal(defended[name], twin[name]) for name in frozen if name.endswith("weight"))
    free = [name for name in defended if name not in frozen and name.endswith("weight")]
    assert free and all(not torch.equal(defended[name], twin[name]) for name in free)


def test_the_manifest_tells_what_was_done(run):
    out, result = run
    manifest = load_model(str(out / result.model)).defense
    assert manifest["method"] == "tldmi" and manifest["settings"] == {"tldmi": {"freeze": "80%", "head_epochs": 0}}
    assert manifest == dict(result.defense)
    assert manifest["test_accuracy"] == result.after.targets[0].accuracy.value


def test_the_manifest_names_the_versions_of_the_run(run):
    _, result = run
    assert set(result.defense["versions"]) == {"mi-audit", "torch", "torchvision", "timm"}
    assert result.defense["versions"].items() <= result.after.tool.items()


def test_the_twin_and_the_defended_model_share_recipe_and_start(run):
    out, _ = run
    sides = [load_model(str(out / f"models/{kind}-s0.safetensors")).defense for kind in ("undefended", "defended")]
    assert sides[0]["recipe"] == sides[1]["recipe"]
    assert sides[0]["init"] == sides[1]["init"]
    assert sides[0]["method"] == "none"


def test_the_defended_model_can_be_attacked_without_flags(run, cache: Path, tmp_path: Path):
    out, result = run
    plan = digit_plan(out / str(result.model), tmp_path / "run", cache)
    report = run_attack(replace(plan, seeds=1, attacks=plan.attacks[:1]))
    assert report.targets[0].sha256 == result.after.targets[0].sha256
    assert report.targets[0].defense["method"] == "tldmi"
    assert report.validity[0].passed is True and "as its manifest says" in report.validity[0].detail


def test_a_repeated_run_gives_the_same_bytes(run, cache: Path):
    out, _ = run
    before = (out / "result.json").read_bytes()
    run_defense(defend_plan(out, cache))
    assert (out / "result.json").read_bytes() == before
    assert read_result(out).kind == "comparison"


def test_the_defended_weights_are_copied_where_the_user_wants_them(run, cache: Path, tmp_path: Path):
    out, _ = run
    plan = defend_plan(out, cache)
    run_defense(replace(plan, defend=replace(plan.defend, save=tmp_path / "safe.safetensors")))
    assert load_model(str(tmp_path / "safe.safetensors")).defense["method"] == "tldmi"


def test_weights_are_not_saved_under_the_name_of_their_manifest(cache: Path, tmp_path: Path):
    plan = defend_plan(tmp_path / "run", cache)
    with pytest.raises(ConfigError, match=r"expected --save FILE\.safetensors, got .*safe\.json"):
        run_defense(replace(plan, defend=replace(plan.defend, save=tmp_path / "safe.json")))
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_found_before_anything_is_trained(cache: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("mi_audit.audit.defend.open_scene", None)
    plan = defend_plan(tmp_path / "run", cache)
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for place in ("file/safe.safetensors", "folder.safetensors"):
        with pytest.raises(StorageError, match="choose another path"):
            run_defense(replace(plan, defend=replace(plan.defend, save=tmp_path / place)))

    def full(**_given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mi_audit.audit.defend.TemporaryFile", full)
    with pytest.raises(StorageError, match="free disk space"):
        run_defense(replace(plan, defend=replace(plan.defend, save=tmp_path / "new/safe.safetensors")))


@pytest.mark.parametrize(
    ("method", "freeze", "settings", "message"),
    [
        ("tldmi", "auto", {"head_epochs": 2}, "expected more than 2 epochs, got 2: head-warm-up take 2"),
        ("tldmi", "80%", {"head_epochs": 2}, "expected more than 2 epochs, got 2: head-warm-up take 2"),
        ("negls", "auto", {"tldmi": {"head_epochs": 2}}, "expected more than 2 epochs"),
        ("tldmi", "stage:9", {}, "expected stage:1 to stage:6"),
        ("rolss", None, {}, "not applicable"),
        ("rolss", "auto", {}, "not applicable"),
        ("loft", None, {}, "expected a rank below 5 classes"),
        ("bido", None, {"layers": "layer9"}, "layer9"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    cache: Path, tmp_path: Path, monkeypatch, method, freeze, settings, message
):
    monkeypatch.setattr("mi_audit.audit.defend.public_start", None)
    plan = defend_plan(tmp_path / "run", cache)
    wanted = DefendPlan(method=method, freeze=freeze, settings=settings, epochs=2)
    with pytest.raises(ConfigError, match=message):
        run_defense(replace(plan, defend=wanted))


@pytest.mark.parametrize(
    ("units", "images", "message"),
    [(9, 0, "expected validation images"), (1, 9, "got 1 of 1; give --freeze")],
)
def test_a_search_without_choice_or_judge_is_refused_before_anything_is_trained(
    cache: Path, tmp_path: Path, monkeypatch, units, images, message
):
    def scene(*given, **more):
        with open_scene(*given, **more) as found:
            val = found.splits.val.select(torch.arange(images))
            yield replace(found, splits=replace(found.splits, val=val))

    monkeypatch.setattr("mi_audit.audit.defend.open_scene", contextmanager(scene))
    monkeypatch.setattr("mi_audit.audit.defend.public_start", None)
    monkeypatch.setattr("mi_audit.audit.auto_freeze.units", lambda *_: [None] * units)
    plan = defend_plan(tmp_path / "run", cache)
    with pytest.raises(ConfigError, match=message):
        run_defense(replace(plan, defend=DefendPlan(method="tldmi", freeze="auto", epochs=2)))


def test_a_disk_that_is_full_when_the_weights_are_copied_is_an_error_in_one_line(run, tmp_path: Path):
    out, result = run
    (tmp_path / "safe.json").mkdir()  # in the way of the sidecar
    with pytest.raises(StorageError, match="expected to write"):
        copy_model(out / str(result.model), tmp_path / "safe.safetensors")
    assert not (tmp_path / "safe.safetensors").exists()


def test_unlabelled_public_data_cannot_start_a_defense(cache: Path, tmp_path: Path):
    plan = replace(defend_plan(tmp_path / "run", cache), public="digits:9")
    with pytest.raises(ConfigError, match="labelled public data"):
        run_defense(plan)


def test_public_weights_of_another_architecture_are_refused(run, cache: Path, tmp_path: Path, digits: Path):
    plan = defend_plan(tmp_path / "run", cache)
    plan = replace(plan, model=replace(plan.model, ref="built-in:resnet18-small"))
    with pytest.raises(ConfigError, match="same architecture"):
        run_defense(replace(plan, defend=DefendPlan(method="tldmi", pretrained=str(digits), epochs=1)))


@pytest.mark.slow
def test_auto_freeze_finds_a_cut_that_keeps_the_utility(cache: Path, tmp_path: Path):
    plan = defend_plan(tmp_path / "run", cache)
    plan = replace(plan, attacks=plan.attacks[:1], defend=replace(plan.defend, freeze="auto:5", epochs=6))
    result = run_defense(plan)
    found = result.defense["freeze_search"]
    assert result.defense["resolved"]["tldmi"]["spec"] == found["spec"]
    assert found["accuracies"]["0"] and set(found["trials"]) >= {"0", str(found["units"])}
    kept = load_model(str(tmp_path / "run" / str(result.model))).defense
    assert kept["freeze_search"] == found and kept["val_accuracy"] == found["trials"][str(found["units"])]["accuracy"]
    assert not (tmp_path / "run" / "images" / "search-none").exists()
