"""The search of a freeze point trains shortly, but not too shortly for the phases that a defense puts first."""

from dataclasses import replace
from pathlib import Path

import pytest

from mi_audit.audit import auto_freeze, pretrain
from mi_audit.audit.attack import Court
from mi_audit.audit.auto_freeze import check_search, find_cut
from mi_audit.audit.plan import DefendPlan
from mi_audit.audit.pretrain import PublicStart
from mi_audit.audit.progress import Silent
from mi_audit.audit.retrain import defend_recipe
from mi_audit.audit.scene import open_scene
from tests.world import defend_plan


class FirstTraining(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "settings", "epochs", "short"),
    [
        ("negls", {}, 9, 3),
        ("negls", {"tldmi": {"head_epochs": 3}}, 9, 4),  # three for the head and one for the rest
        ("tldmi", {"head_epochs": 3}, 9, 4),
        ("tldmi", {"head_epochs": 3}, 15, 5),
        ("ca", {"ca": {"epochs": 20}}, 9, 3),  # its phase comes after the main one and takes nothing from it
    ],
)
def test_a_short_training_outlasts_the_phases_before_it(
    cache: Path, tmp_path: Path, monkeypatch, method, settings, epochs, short
):
    trained = []

    def fit_private(_scene, _how, _seed, recipe, _checkpoint):
        trained.append(recipe.epochs)
        raise FirstTraining

    monkeypatch.setattr(auto_freeze, "fit_private", fit_private)
    plan = defend_plan(tmp_path / "run", cache)
    wanted = DefendPlan(method=method, settings=settings, freeze="auto", epochs=epochs)
    with open_scene(replace(plan, defend=wanted), "defend", Silent()) as scene, pytest.raises(FirstTraining):
        find_cut(scene, PublicStart({}, {}), defend_recipe(scene), object.__new__(Court), {}, 0.02)
    assert trained == [short]


def test_one_fresh_network_tells_whether_a_cut_can_be_searched(cache: Path, tmp_path: Path, monkeypatch):
    built, build = [], pretrain.new_model

    def counted(*given, **more):
        built.append(given)
        return build(*given, **more)

    monkeypatch.setattr(pretrain, "new_model", counted)
    plan = defend_plan(tmp_path / "run", cache)
    wanted = DefendPlan(method="rolss", freeze="auto", epochs=3)
    model = replace(plan.model, ref="built-in:resnet18-small")
    with open_scene(replace(plan, model=model, defend=wanted), "defend", Silent()) as scene:
        built.clear()
        check_search(scene)
    assert len(built) == 1
