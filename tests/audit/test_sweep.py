import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mi_audit.audit.plan import DefendPlan, ModelPlan, Plan
from mi_audit.audit.sweep import grid_of, run_sweep, sweep_folder, sweep_plans
from mi_audit.core.errors import ConfigError, Diverged, StorageError
from mi_audit.core.report import Verdict
from mi_audit.store.results import read_sweep, to_json
from mi_audit.store.runs import RunFolder
from mi_audit.store.targets import load_model
from tests.audit.sweep_sample import first, rows, run
from tests.world import defend_plan

LEAKS = {"0%": 20, "40%": 12, "80%": 3, "90%": 2}


class Engine:
    """Stands for `run_defense`: trains nothing, but keeps the same files and counts what it had to do."""

    def __init__(self, **errors):
        self.plans, self.trained, self.attacked, self.errors = [], [], [], errors

    def __call__(self, plan, _progress):
        value = plan.out.name
        self.plans.append(plan)
        with RunFolder(plan.out) as folder:
            twin = plan.out / "models" / "undefended-s0.safetensors"
            if not twin.exists() or plan.defend.epochs is not None:
                self.trained.append(value)
                twin.parent.mkdir(exist_ok=True)
                twin.with_suffix(".json").write_text("{}")
                twin.write_bytes(b"weights")
            if value in self.errors:
                raise self.errors[value]
            for job in ("ppa-s0-c0000-0019-twin", f"ppa-s0-c0000-0019-{value.strip('%')}"):
                if folder.read_job(job) is None:
                    self.attacked.append(job)
                    folder.write_job(job, {"images": torch.zeros(1)}, {})
            (plan.out / "models" / "defended-s0.safetensors").write_bytes(value.encode())
            (plan.out / "models" / "defended-s0.json").write_text("{}")
        return run(first(LEAKS.get(value, 5)), rows(0.99), twin_sha=f"{plan.defend.epochs or 0:02}")


@pytest.fixture
def plan(tmp_path):
    return Plan(
        model=ModelPlan(ref="m.safetensors"),
        out=tmp_path / "sweep",
        command="mi-audit defend m --sweep freeze=40%,80%",
        defend=DefendPlan(sweep="freeze=40%,80%,0%"),
    )


def with_(plan, **changes):
    return replace(plan, defend=replace(plan.defend, **changes))


def test_runs_every_value_in_a_folder_of_its_own(plan):
    engine = Engine()
    found = run_sweep(plan, defend=engine)
    assert [one.defend.freeze for one in engine.plans] == ["40%", "80%", "0%"]
    assert [one.out for one in engine.plans] == [plan.out / name for name in ("40%", "80%", "0%")]
    assert {one.defend.sweep for one in engine.plans} == {None}
    assert engine.plans[1].command == "mi-audit defend m --freeze 80%"
    assert [(point.value, point.worth.attack_accuracy.value) for point in found.points] == [
        ("40%", 0.6), ("80%", 0.15), ("0%", 1.0)
    ]  # fmt: skip
    assert [point.place for point in found.points] == ["dominated", "front", "dominated"]
    assert found.advice.value == "80%" and found.failures == ()


def test_the_twin_is_trained_and_attacked_once(plan):
    engine = Engine()
    found = run_sweep(plan, defend=engine)
    assert engine.trained == ["40%"]
    assert sorted(engine.attacked) == sorted(f"ppa-s0-c0000-0019-{name}" for name in ("twin", "40", "80", "0"))
    assert [twin.values for twin in found.twins] == [("40%", "80%", "0%")] and {p.twin for p in found.points} == {0}
    assert not list(plan.out.rglob("*.tmp"))
    assert (plan.out / "80%/models/defended-s0.safetensors").read_bytes() == b"80%"  # its own


def test_where_links_are_not_supported_files_are_copied(plan, monkeypatch):
    def no_links(*_given):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    engine = Engine()
    run_sweep(plan, defend=engine)
    assert engine.trained == ["40%"]


def test_typing_the_command_again_goes_on(plan):
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, defend=Engine(**{"80%": KeyboardInterrupt()}))
    assert not (plan.out / "sweep.json").exists()
    again = Engine()
    found = run_sweep(plan, defend=again)
    assert again.trained == [] and again.attacked == ["ppa-s0-c0000-0019-80", "ppa-s0-c0000-0019-0"]
    once_more = Engine()
    assert run_sweep(plan, defend=once_more) == found and once_more.attacked == []


def test_more_values_join_those_that_are_there(plan):
    run_sweep(plan, defend=Engine())
    engine = Engine()
    run_sweep(with_(plan, sweep="freeze=20%,40%"), defend=engine)
    assert engine.trained == [] and engine.attacked == ["ppa-s0-c0000-0019-20"]


def test_fresh_trains_and_attacks_again_but_the_twin_only_once(plan):
    run_sweep(plan, defend=Engine())
    engine = Engine()
    run_sweep(replace(with_(plan, sweep="freeze=40%,80%"), fresh=True), defend=engine)
    assert engine.trained == ["40%"] and len(engine.attacked) == 3
    assert not any(one.fresh for one in engine.plans)


def test_a_setting_of_the_training_gives_every_value_its_own_twin(plan):
    engine = Engine()
    found = run_sweep(with_(plan, sweep="epochs=5,10"), defend=engine)
    assert engine.trained == ["5", "10"]
    assert [twin.values for twin in found.twins] == [("5",), ("10",)] and [p.twin for p in found.points] == [0, 1]


@pytest.mark.parametrize("error", [Diverged("expected A, got B; do C"), RuntimeError("out of memory")])
def test_a_value_that_fails_is_listed_and_the_others_go_on(plan, error):
    found = run_sweep(plan, defend=Engine(**{"40%": error}))
    assert [point.value for point in found.points] == ["80%", "0%"]
    (failure,) = found.failures
    assert (failure.value, failure.folder) == ("40%", "40%")
    assert failure.message == (
        "expected A, got B; do C" if isinstance(error, Diverged) else "RuntimeError: out of memory"
    )
    assert found.values == ("40%", "80%", "0%")


def test_when_every_value_fails_the_first_error_is_raised(plan):
    errors = {name: Diverged(f"{name} broke") for name in ("40%", "80%", "0%")}
    with pytest.raises(Diverged, match="40% broke"):
        run_sweep(plan, defend=Engine(**errors))
    assert not (plan.out / "sweep.json").exists()


def test_a_full_disk_stops_everything(plan):
    engine = Engine(**{"40%": StorageError("full")})
    with pytest.raises(StorageError):
        run_sweep(plan, defend=engine)
    assert len(engine.plans) == 1


def test_the_result_is_canonical_and_comes_back(plan):
    found = run_sweep(plan, defend=Engine())
    assert read_sweep(plan.out) == found
    text = (plan.out / "sweep.json").read_text()
    assert text == to_json(found)
    assert (json.loads(text)["kind"], json.loads(text)["schema_version"]) == ("sweep", "1.0.0")


def test_a_sweep_can_be_resumed_by_its_plan(plan):
    run_sweep(plan, defend=Engine())
    with RunFolder(plan.out) as folder:
        saved = folder.read_plan()
    assert saved["kind"] == "defend" and saved["plan"]["defend"]["sweep"] == "freeze=40%,80%,0%"


def test_the_weights_of_the_recommended_value_are_saved(plan, tmp_path):
    run_sweep(with_(plan, save=tmp_path / "safe.safetensors"), defend=Engine())
    assert (tmp_path / "safe.safetensors").read_bytes() == b"80%"
    run_sweep(with_(plan, save=tmp_path / "none.safetensors", sweep="freeze=0%"), defend=Engine())
    assert not (tmp_path / "none.safetensors").exists()


def test_gates_and_masking_are_told(plan):
    def masked(_plan, _progress):
        after = first(3)
        return run(after, rows(1.0), defense={"kind": "gradient-masking"}, verdict=Verdict(outcome="FAIL", rules=()))

    found = run_sweep(replace(plan, images="none"), defend=masked)
    assert {point.verdict for point in found.points} == {"FAIL"}
    assert any("class gradient-masking" in warning for warning in found.warnings)
    assert any("--images none" in warning for warning in found.warnings)


def test_the_folder_depends_on_the_setting_and_not_on_its_values(plan):
    free = replace(plan, out=None)
    names = [with_(free, sweep=text, tolerance=points) for text, points in (("freeze=1%", 2.0), ("freeze=2%,3%", 5.0))]
    assert len({sweep_folder(one) for one in names}) == 1
    assert sweep_folder(with_(free, sweep="epochs=3")) != sweep_folder(names[0])
    assert sweep_folder(names[0]).name.startswith("sweep-m-")


def test_a_wrong_grid_is_refused_before_anything_runs(plan):
    for text, message in (
        ("freeze=80", "expected --freeze"),
        ("freeze=40%,most", "got 'most'"),
        ("lr=fast", "a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweep_plans(with_(plan, sweep=text), grid_of(with_(plan, sweep=text)))
    with pytest.raises(ConfigError, match="expected --sweep NAME=VALUE"):
        grid_of(with_(plan, sweep=None))


def test_a_twin_of_an_earlier_sweep_does_not_replace_the_one_that_is_there(plan):
    run_sweep(plan, defend=Engine())
    (plan.out / "80%/models/undefended-s0.safetensors").unlink()
    (plan.out / "80%/models/undefended-s0.safetensors").write_bytes(b"another")
    engine = Engine()
    run_sweep(with_(plan, sweep="freeze=40%"), defend=engine)
    assert (plan.out / "40%/models/undefended-s0.safetensors").read_bytes() == b"weights"


@pytest.mark.slow
def test_a_real_sweep_shares_one_twin(cache: Path, tmp_path: Path):
    plan = defend_plan(tmp_path / "sweep", cache)
    plan = replace(plan, attacks=plan.attacks[:1], defend=replace(plan.defend, freeze=None, sweep="freeze=40%,80%"))
    found = run_sweep(plan)
    assert [point.value for point in found.points] == ["40%", "80%"] and found.failures == ()
    twins = [tmp_path / "sweep" / name / "models" / "undefended-s0.safetensors" for name in ("40%", "80%")]
    assert twins[0].samefile(twins[1])
    assert len(found.twins) == 1 and found.twins[0].values == ("40%", "80%")
    assert (
        load_model(str(tmp_path / "sweep" / "40%" / "models" / "defended-s0.safetensors")).defense["method"] == "tldmi"
    )
