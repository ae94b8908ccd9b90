import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import nn

from mi_audit.audit import counterfactual as module
from mi_audit.audit import pretrain, registry
from mi_audit.audit.attack import run_attack
from mi_audit.audit.counterfactual import (
    Counterfactual,
    check_counterfactual,
    counterfactual,
    counterfactual_recipe,
    doubted,
)
from mi_audit.audit.defend import run_defense
from mi_audit.audit.judge import model_facts
from mi_audit.audit.plan import AttackPlan, DecisionPlan, DefendPlan, Plan
from mi_audit.audit.progress import Silent
from mi_audit.audit.scene import Scene, open_scene, whole
from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError, TargetError
from mi_audit.core.quantity import Measurement, Quantity
from mi_audit.core.report import AuditReport
from mi_audit.store.datasets import load_splits
from mi_audit.store.results import read_result
from mi_audit.store.targets import load_model, new_model, save_model
from mi_audit.train import defended
from mi_audit.train.recipe import Recipe
from tests.audit.test_control import result
from tests.audit.test_decisions import PPA, Contaminated
from tests.world import defend_plan, digit_plan

ATTACKED = (0, 3)
UNKNOWN = Quantity(value=None, unit="share", count=0, counted="images", reason="not measured here")


def counterfactual_plan(model: Path, out: Path, cache: Path, **changes: object) -> Plan:
    """One attack and this control, with a target trained for two epochs."""
    plan = digit_plan(model, out, cache)
    usual = {"controls": ("counterfactual",), "seeds": 1, "attacks": plan.attacks[:1], "metrics": ("attack-accuracy",)}
    return replace(plan, **{**usual, "defend": DefendPlan(epochs=2), **changes})


def hashes(*pixels: torch.Tensor) -> set[str]:
    return {sha256(image.tobytes()).hexdigest() for part in pixels for image in part.numpy()}


@pytest.fixture(scope="module", autouse=True)
def brief_starts():
    """Public starts are trained for two epochs instead of eight."""
    usual = pretrain.start_recipe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "start_recipe", lambda scene, data, _=None: usual(scene, data, 2))
        yield


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run with a cache of its own, and everything that any trainer of the control was given."""
    folder, given, patch = tmp_path_factory.mktemp("counterfactual"), [], pytest.MonkeyPatch()
    for trainer in (defended, pretrain):
        patch.setattr(trainer, "fit", spied(trainer.fit, given))
    report = run_attack(counterfactual_plan(digits, folder / "run", folder / "cache", seeds=2))
    patch.undo()
    return folder, report, given


def spied(fit, given):
    def spy(model, train, val, recipe, **more):
        given.append((train, val, recipe))
        return fit(model, train, val, recipe, **more)

    return spy


@pytest.fixture(scope="module")
def scene(digits: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("scene")
    with open_scene(counterfactual_plan(digits, folder / "run", folder / "cache"), "attack", Silent()) as opened:
        yield opened


def planned(scene: Scene, **changes: object) -> Scene:
    return replace(scene, plan=replace(scene.plan, **changes), warnings=[])


def made(scene: Scene, people: tuple[int, ...] = ATTACKED) -> Counterfactual:
    """The counterfactual target of the model of `scene`."""
    return counterfactual(scene, {0: (scene.model, model_facts(scene.model, UNKNOWN))}, people)


def test_no_trainer_of_the_control_is_given_a_picture_of_an_attacked_person(run, scene):
    _, _, given = run
    private = whole(scene.splits)
    theirs = hashes(private.pixels[torch.isin(private.labels, torch.tensor(ATTACKED))])
    assert len(given) == 3  # a start, and a target for each of two seeds
    for train, val, _ in given:
        assert len(train) and not theirs & hashes(train.pixels, val.pixels)


def test_no_start_is_trained_on_a_public_copy_of_an_attacked_person(scene, monkeypatch):
    given: list[tuple[Dataset, Dataset, Recipe]] = []
    for trainer in (defended, pretrain):
        monkeypatch.setattr(trainer, "fit", spied(trainer.fit, given))
    theirs = scene.splits.train.pixels[scene.splits.train.labels == 3][:30]
    public = replace(scene.public, pixels=scene.public.pixels.clone(), fingerprint="with copies")
    public.pixels[:30] = theirs
    made(replace(planned(scene), public=public))
    assert len(given) == 2
    assert all(not hashes(theirs) & hashes(train.pixels, val.pixels) for train, val, _ in given)


def test_the_outputs_of_attacked_people_keep_their_index_and_others_keep_everything(run, scene):
    targets = [one for one in run[2] if "(public)" in one[0].classes[0]]
    assert len(targets) == 2
    for train, _, _ in targets:
        assert sorted(train.labels.unique().tolist()) == [0, 1, 2, 3, 4]
        assert [name for name in train.classes if "(public)" not in name] == ["1", "2", "4"]
        mine, ours = scene.splits.train, train
        for label in (1, 2, 4):
            assert torch.equal(ours.pixels[ours.labels == label], mine.pixels[mine.labels == label])


def test_the_same_attack_runs_on_the_same_classes_and_is_compared(run):
    _, report, _ = run
    ours, control = report.attacks
    assert (control.name, control.role) == ("control:counterfactual:gmi", "control")
    assert (control.settings, control.seeds, control.prior) == (ours.settings, (0, 1), ours.prior)
    rows = [{(row.label, row.seed) for row in one.measurement("attack_acc1").per_class} for one in (ours, control)]
    assert rows[0] == rows[1] == {(label, seed) for label in ATTACKED for seed in (0, 1)}
    assert control.queries == ours.queries
    (leak,) = ours.over_control
    assert leak.name == "leakage_acc1" and leak.protocol.endswith("-over-control:counterfactual:gmi")
    difference = ours.measurement("attack_acc1").value - control.measurement("attack_acc1").value
    assert leak.value == pytest.approx(difference)


def test_the_note_says_what_it_was_trained_on_and_how_good_it_is(run):
    note = run[1].attacks[1].note
    assert re.search(
        r"without the 2 people to attack: 2 epochs on \d+ images, starting from weights trained on 5 pub", note
    )
    assert "Strangers from the public data have the outputs of 2 of them" in note
    share = re.search(r"Accuracy ([\d.]+)% on 81 held-out images of the others \(the model under audit", note)
    assert float(share[1]) > 60
    assert "means over 2 seeds" in note and run[1].attacks[0].note == ""


def test_it_does_not_recognise_whom_it_never_met_as_the_model_does(run):
    ours, theirs = re.search(
        r"It puts ([\d.]+)% of 54 held-out .* their outputs \(the model under audit: ([\d.]+)%", run[1].attacks[1].note
    ).groups()
    assert float(ours) < 50 < float(theirs)


def test_the_control_is_in_the_saved_report(run):
    folder, report, _ = run
    assert read_result(folder / "run") == report
    assert isinstance(report, AuditReport) and report.attacks[1].note in (folder / "run/result.json").read_text()


def test_typed_again_nothing_is_trained_and_the_bytes_are_the_same(run, digits, monkeypatch):
    folder = run[0]
    before = (folder / "run/result.json").read_bytes()
    monkeypatch.setattr(defended, "fit", None)
    monkeypatch.setattr(pretrain, "fit", None)
    run_attack(counterfactual_plan(digits, folder / "run", folder / "cache", seeds=2))
    assert (folder / "run/result.json").read_bytes() == before


def test_another_choice_of_people_is_another_target(run, digits, monkeypatch):
    folder = run[0]
    monkeypatch.setattr(defended, "fit", None)
    with pytest.raises(TypeError):  # trained anew, although the run folder is the same
        run_attack(counterfactual_plan(digits, folder / "run", folder / "cache", classes="1,3"))


def test_models_of_this_tool_are_retrained_by_their_own_recipe_and_defense(scene):
    recipe = Recipe(epochs=3, lr=0.01, batch_size=16, precision="32")
    stated = {"method": "none", "recipe": {**recipe.__dict__, "precision": "bf16"}}
    known = replace(scene, model=replace(scene.model, defense=stated))
    assert counterfactual_recipe(known) == recipe
    assert counterfactual_recipe(scene).epochs == 2
    assert counterfactual_recipe(replace(scene, model=replace(scene.model, defense={"recipe": {}}))).epochs == 2


def test_a_defended_model_is_compared_with_one_of_the_same_defense(scene):
    stated = {
        "method": "tldmi",
        "settings": {"tldmi": {"freeze": "80%"}},
        "recipe": Recipe(epochs=1, precision="32").__dict__,
    }
    found = made(replace(scene, model=replace(scene.model, defense=stated)))
    assert "with the defense tldmi without the 2 people to attack: 1 epochs" in found.note
    assert found.targets[0][0].defense["settings"] == {"tldmi": {"freeze": "80%", "head_epochs": 0}}


def own_network(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, num_classes))


def test_a_network_of_the_users_own_code_is_trained_too(scene):
    found = made(replace(scene, model=own_model()))
    assert found.targets[0][0].arch == own_model().arch
    assert "starting from weights trained on 5 public classes" in found.note


def own_model():
    return new_model(
        "py:tests.audit.test_counterfactual:own_network", num_classes=5, channels=1, size=32, mean=(0.5,), std=(0.5,),
        seed=0,
    )  # fmt: skip


def test_a_control_that_was_not_asked_for_costs_nothing(scene, monkeypatch):
    monkeypatch.setattr(module, "purged", None)
    assert made(planned(scene, controls=("random",))) is None


def test_a_sequential_run_trains_it_once_without_everybody_it_might_attack(run, digits, monkeypatch):
    folder, _, given = run[0], run[1], []
    monkeypatch.setattr(defended, "fit", spied(defended.fit, given))
    decision = DecisionPlan(policy="audit-v1", tau=0.9, sequential=True)
    changes = {"classes": "all", "chunk": 3, "decision": decision, "metrics": ("attack-accuracy", "exposure")}
    changes["positive_control"] = False
    report = run_attack(counterfactual_plan(digits, folder / "sequential", folder / "cache", **changes))
    ((train, _, _),) = given
    assert all(name.endswith("(public)") for name in train.classes)
    assert "without the 5 people to attack" in report.attacks[1].note


class Leaked(Contaminated):
    """A prior that holds pictures of the private people, so that an attack needs the model only to tell them apart."""

    def fit(self, public, target, seed, device, on_step, checkpoint=None):
        del public
        return super().fit(load_splits("digits:0-4", 32, 1).train, target, seed, device, on_step, checkpoint)


@pytest.mark.slow
def test_what_a_model_gives_away_is_not_found_in_one_that_never_met_them(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "priors", lambda: {"gmi-gan": Leaked})
    attacks = (AttackPlan(name="ppa", settings=PPA),)
    changes = {"classes": "all", "chunk": 10, "prior_settings": {}, "attacks": attacks, "evaluator_epochs": 4}
    plan = counterfactual_plan(digits, tmp_path / "run", tmp_path / "cache", defend=DefendPlan(epochs=3), **changes)
    ours, control = run_attack(plan).attacks
    assert ours.measurement("attack_acc1").value > 0.9 and control.measurement("attack_acc1").value < 0.5
    assert control.measurement("target_acceptance").value > 0.6  # it did find somebody
    (leak,) = ours.over_control
    assert leak.value > 0.5 and leak.interval.low > 0


@pytest.mark.slow
def test_both_sides_of_a_defense_have_a_target_of_their_own(cache, tmp_path):
    plan = defend_plan(tmp_path / "run", cache)
    plan = replace(plan, controls=("counterfactual",), attacks=plan.attacks[:1], metrics=("attack-accuracy",))
    compared = run_defense(replace(plan, defend=replace(plan.defend, freeze="80%")))
    before, after = compared.before.attacks[1], compared.after.attacks[1]
    assert before.name == after.name == "control:counterfactual:gmi"
    assert "with the defense tldmi" in after.note and "with the defense" not in before.note
    kept = [load_model(str(file)).defense for file in sorted(cache.glob("counterfactuals/*/model.safetensors"))]
    assert {one["method"] for one in kept} >= {"none", "tldmi"}


def test_without_labels_outputs_stay_empty_and_the_report_says_so(scene):
    unlabelled = replace(planned(scene), public=scene.public.select((scene.public.labels == 0).nonzero().squeeze(1)))
    found = made(unlabelled)
    assert "have no images" in found.note and "starting from fresh weights" in found.note
    assert any("2 of the 2 outputs" in text and "too low" in text for text in unlabelled.warnings)
    model = found.targets[0][0]
    assert model.classifier.num_classes == 5 and model.class_names[0] == "nobody"


def test_when_all_people_are_attacked_strangers_are_left(scene):
    everybody = (0, 1, 2, 3, 4)
    note = made(planned(scene), everybody).note
    assert "have the outputs of 5 of them" in note
    assert re.search(r"Accuracy [\d.]+% on \d+ held-out images of strangers, as nobody else is left\.", note)


def test_with_all_attacked_and_no_strangers_nobody_is_left(scene):
    alone = replace(scene, public=scene.public.select((scene.public.labels == 0).nonzero().squeeze(1)))
    check_counterfactual(alone, ATTACKED)
    for attacked, left in (((0, 1, 2, 3, 4), 0), ((0, 1, 2, 3), 1)):
        with pytest.raises(ConfigError, match=rf"two people or more .* got {left}: {len(attacked)} of 5 classes"):
            check_counterfactual(alone, attacked)
    check_counterfactual(scene, (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_kwargs": {"width": 3}}, "without arguments .* width; give --counterfactual MODEL"),
        ({"arch": "timm:no_such_net"}, "expected an architecture .* or give --counterfactual MODEL"),
        ({"defense": {"method": "bido"}}, "declares bido; give --counterfactual MODEL"),
        ({"defense": {"method": "tldmi"}}, "declares tldmi"),  # without its settings
        ({"defense": {"recipe": {**Recipe().__dict__, "schedule": "cosine"}}}, "valid schedule in the recipe"),
    ],
)
def test_what_cannot_be_trained_here_is_refused_at_once(scene, changes, message):
    with pytest.raises(ConfigError, match=message):
        check_counterfactual(replace(scene, model=replace(scene.model, **changes)), ATTACKED)


def test_the_defense_of_a_model_that_is_retrained_anyway_does_not_matter(scene):
    model = replace(scene.model, defense={"method": "bido"})
    check_counterfactual(replace(scene, model=model), ATTACKED, trains=True)


def test_a_refusal_comes_before_the_evaluator_is_trained(digits, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("mi_audit.audit.attack.load_court", None)
    plan = counterfactual_plan(digits, tmp_path / "run", cache, classes="all", public="digits:9")
    with pytest.raises(ConfigError, match="two people or more"):
        run_attack(plan)


def test_control_and_model_go_together(scene):
    with pytest.raises(ConfigError, match="expected counterfactual among the controls"):
        check_counterfactual(planned(scene, controls=("random",), counterfactual="m.safetensors"), ATTACKED)
    with pytest.raises(ConfigError, match="no --counterfactual for models that are trained in this run"):
        check_counterfactual(planned(scene, counterfactual="m.safetensors"), ATTACKED, trains=True)
    with pytest.raises(TargetError, match="no file at m"):
        check_counterfactual(planned(scene, counterfactual="m.safetensors"), ATTACKED)
    with pytest.raises(ConfigError, match="not the target, got the same weights"):
        check_counterfactual(planned(scene, counterfactual=scene.model.ref), ATTACKED)
    odd = replace(scene, model=replace(scene.model, defense={"method": "bido"}))
    check_counterfactual(planned(odd, controls=("random",)), ATTACKED)


def test_a_model_of_the_owner_takes_its_place(scene, tmp_path, monkeypatch):
    file = tmp_path / "other.safetensors"
    trained = made(planned(scene, defend=DefendPlan(epochs=8))).targets[0][0]
    save_model(file, trained, {})
    monkeypatch.setattr(defended, "fit", None)
    given = planned(scene, counterfactual=str(file))
    found = made(given)
    assert found.targets[0][0].sha256 == load_model(str(file)).sha256
    assert found.note.startswith(f"{file}, as given: it is for its owner to know") and "Accuracy" in found.note


def test_one_person_who_is_not_attacked_is_enough_beside_a_given_model(scene, tmp_path):
    same = load_model(scene.model.ref)
    with torch.no_grad():
        next(same.classifier.net.parameters()).mul_(1.0001)
    save_model(tmp_path / "twin.safetensors", same, {})
    found = made(planned(scene, counterfactual=str(tmp_path / "twin.safetensors")), (0, 1, 2, 3))
    assert re.search(r"Accuracy [\d.]+% on \d+ held-out images of the others", found.note)


@pytest.mark.parametrize("people", [ATTACKED, (0, 1, 2, 3, 4)])
def test_a_given_model_that_knows_the_attacked_people_is_a_warning(scene, tmp_path, people):
    same = load_model(scene.model.ref)
    with torch.no_grad():
        next(same.classifier.net.parameters()).mul_(1.0001)
    save_model(tmp_path / "twin.safetensors", same, {})
    given = planned(scene, counterfactual=str(tmp_path / "twin.safetensors"))
    made(given, people)
    assert any("was it trained on them?" in text for text in given.warnings)


def test_the_target_and_models_of_other_outputs_are_no_counterfactual(scene, tmp_path):
    with pytest.raises(ConfigError, match="not the target, got the same weights"):
        made(planned(scene, counterfactual=scene.model.ref))
    three = module.fresh_private_model(replace(scene, splits=of_three(scene)), None, 0, {})[0]
    save_model(tmp_path / "three.safetensors", three, {})
    with pytest.raises(ConfigError, match="of 5 outputs, got 3"):
        made(planned(scene, counterfactual=str(tmp_path / "three.safetensors")))


def of_three(scene: Scene):
    return replace(scene.splits, train=replace(scene.splits.train, classes=("a", "b", "c")))


def test_a_much_weaker_target_is_a_warning(scene):
    weak = planned(scene, defend=DefendPlan(epochs=1, lr=1e-9))
    made(weak)
    assert any("its floor may be too low; train it longer" in text for text in weak.warnings)


@pytest.mark.parametrize(("accepted", "flags"), [(0.95, 0), (0.5, 1), (None, 0)])
def test_a_control_that_did_not_converge_is_flagged(accepted, flags):
    one = Measurement(
        name="target_acceptance", protocol="p", value=accepted, unit="share", count=2, counted="images", reason="-",
        leak_grows=None,
    )  # fmt: skip
    found = doubted(replace(result("control:counterfactual:gmi", 0.0, role="control"), measurements=(one,)))
    assert len(found.flags) == flags and all("accepts 50%" in flag and "too low" in flag for flag in found.flags)
