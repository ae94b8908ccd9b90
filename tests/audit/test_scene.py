from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mi_audit.audit.plan import ModelPlan, Plan
from mi_audit.audit.progress import Silent
from mi_audit.audit.scene import choose_device, choose_size, open_scene, run_folder_path, whole
from mi_audit.audit.settings import plan_from_json
from mi_audit.core.errors import ConfigError
from mi_audit.store.datasets import load_splits
from tests.world import digit_plan

PLAN = Plan(model=ModelPlan(ref="dist/face.safetensors"), private="a", public="b")


@pytest.mark.parametrize(("model", "size"), [(28, 32), (32, 32), (33, 64), (64, 64), (100, 128), (224, 128), (8, 32)])
def test_priors_work_at_the_next_power_of_two_that_they_are_built_for(model, size):
    assert choose_size(model, None) == size


def test_a_wanted_size_wins_and_must_be_one_of_three():
    assert choose_size(224, 64) == 64
    with pytest.raises(ConfigError, match="32, 64 or 128"):
        choose_size(64, 50)


def test_a_device_that_is_not_here_is_a_wrong_setting():
    assert choose_device("cpu") == "cpu"
    for absent in ("cuda:17", "nonsense"):
        with pytest.raises(ConfigError, match="exists here"):
            choose_device(absent)


def test_a_run_without_a_folder_gets_one_that_depends_on_its_plan_alone():
    path = run_folder_path(PLAN, "attack")
    assert path.parent == Path("runs") and path.name.startswith("attack-face-")
    same = replace(PLAN, device="cuda", batch_size=3, command="x", fresh=True, cache=Path("c"))
    assert run_folder_path(same, "attack") == path
    assert run_folder_path(replace(PLAN, seed=1), "attack") != path
    assert run_folder_path(PLAN, "defend") != path
    assert run_folder_path(replace(PLAN, out=Path("here")), "attack") == Path("here")


def test_the_whole_of_a_data_set_is_all_its_parts():
    splits = load_splits("digits:0-1", 32, 1)
    data = whole(splits)
    assert len(data) == len(splits.train) + len(splits.val) + len(splits.test) == len(data.pixels)
    assert torch.equal(data.labels[-len(splits.test) :], splits.test.labels)


def test_overlapping_private_and_public_data_are_reported(digits: Path, cache: Path, tmp_path: Path):
    plan = replace(digit_plan(digits, tmp_path / "run", cache), public="digits:4-8")
    with open_scene(plan, "attack", Silent()) as scene:
        assert "none found" not in scene.overlap
    with open_scene(replace(plan, public="digits:5-9"), "attack", Silent()) as scene:
        assert scene.overlap.startswith("none found")


def test_time_is_written_even_when_a_run_is_cut_short(digits: Path, cache: Path, tmp_path: Path):
    with (
        pytest.raises(KeyboardInterrupt),
        open_scene(digit_plan(digits, tmp_path / "run", cache), "attack", Silent()),
    ):
        raise KeyboardInterrupt
    assert (tmp_path / "run/timing.json").is_file()
    assert (tmp_path / "run/plan.json").is_file()


def test_a_fresh_run_forgets_the_jobs_once_and_its_resumption_none(digits: Path, cache: Path, tmp_path: Path):
    plan = replace(digit_plan(digits, tmp_path / "run", cache), fresh=True)
    job = tmp_path / "run/jobs/gmi.safetensors"
    with open_scene(plan, "attack", Silent()) as scene:
        assert scene.plan.fresh
        scene.folder.write_job("gmi", {}, {})
        planned = plan_from_json(scene.folder.read_plan()["plan"])
    with open_scene(planned, "attack", Silent()):
        assert job.is_file() and planned == replace(plan, fresh=False)
    with open_scene(plan, "attack", Silent()):
        assert not job.exists()


def test_a_dry_scene_leaves_nothing_behind(digits: Path, cache: Path, tmp_path: Path):
    with open_scene(digit_plan(digits, tmp_path / "run", cache), "attack", Silent(), dry=True) as scene:
        inside = scene.folder.path
    assert not (tmp_path / "run").exists() and not inside.exists()
