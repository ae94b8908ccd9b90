"""A model that a run trained is used again only for what it was trained for."""

from collections.abc import Iterator
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
import torch

from mi_audit.audit import retrain
from mi_audit.audit.composition import UNDEFENDED, compose
from mi_audit.audit.defend import trained
from mi_audit.audit.plan import DefendPlan
from mi_audit.audit.pretrain import PublicStart, fresh_private_model
from mi_audit.audit.progress import Silent
from mi_audit.audit.retrain import Retraining, retrained
from mi_audit.audit.scene import Scene, open_scene
from mi_audit.audit.settings_tables import DefendTable
from mi_audit.core.dataset import Dataset
from mi_audit.nn import skips
from mi_audit.nn.classifier import Classifier
from mi_audit.store.targets import LoadedModel, new_model, save_model
from mi_audit.train.accuracy import accuracy
from mi_audit.train.augment import Augmentation
from mi_audit.train.recipe import Recipe
from tests.nn.test_skips_attention import torchvision_convnext
from tests.world import defend_plan

AUGMENTED = [("auto", 1, "shift"), ("auto", 3, "faces"), ("none", 3, "none"), ("faces", 1, "faces")]
PLAIN = Retraining(UNDEFENDED, None, Recipe(epochs=2, precision="32"))


@pytest.fixture(scope="module")
def scene(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with open_scene(defend_plan(tmp_path_factory.mktemp("scene") / "run", cache), "defend", Silent()) as opened:
        splits = opened.splits
        few = replace(splits, train=some(splits.train, "train"), val=some(splits.val, "val"))
        yield replace(opened, splits=few)


def some(data: Dataset, name: str, count: int = 60) -> Dataset:
    return replace(data.select(torch.arange(min(count, len(data)))), fingerprint=name)


def start(scene: Scene, seed: int) -> PublicStart:
    model, _ = fresh_private_model(scene, None, seed, {})
    return PublicStart(model.classifier.net.state_dict(), {"sha256": model.sha256})


def same(one: LoadedModel, other: LoadedModel) -> bool:
    return one.sha256 == other.sha256


def changed(scene: Scene) -> dict[str, tuple[Scene, Retraining, int]]:
    splits, model = scene.splits, scene.model
    return {
        "arch": (replace(scene, model=replace(model, arch="built-in:cnn-wide")), PLAIN, 0),
        "mean": (replace(scene, model=model.with_input(mean=(0.4,))), PLAIN, 0),
        "train": (replace(scene, splits=replace(splits, train=some(splits.train, "other"))), PLAIN, 0),
        "val": (replace(scene, splits=replace(splits, val=some(splits.val, "other"))), PLAIN, 0),
        "recipe": (scene, replace(PLAIN, recipe=replace(PLAIN.recipe, lr=0.01)), 0),
        "start": (scene, replace(PLAIN, start=start(scene, 5)), 0),
        "method": (scene, replace(PLAIN, composition=compose("tldmi", {}, "80%")), 0),
        "settings": (scene, replace(PLAIN, composition=compose("tldmi", {}, "40%")), 0),
        "seed": (scene, PLAIN, 1),
    }


def test_what_was_trained_for_the_same_is_kept_and_anything_else_trained_anew(scene, tmp_path, monkeypatch):
    file = tmp_path / "m.safetensors"
    trained: list[int] = []
    fit = retrain.fit_defended
    monkeypatch.setattr(retrain, "fit_defended", lambda *given, **named: trained.append(1) or fit(*given, **named))
    first = retrained(scene, PLAIN, 0, file, "plain")
    assert same(retrained(scene, PLAIN, 0, file, "plain"), first) and len(trained) == 1
    other_precision = replace(PLAIN, recipe=replace(PLAIN.recipe, precision="auto"))  # part of no id
    assert same(retrained(scene, other_precision, 0, file, "plain"), first) and len(trained) == 1
    for number, (name, what) in enumerate(changed(scene).items()):
        retrained(*what, file, name)
        assert len(trained) == 2 + number, name
    retrained(replace(scene, plan=replace(scene.plan, fresh=True)), PLAIN, 1, file, "plain")
    assert len(trained) == 2 + len(changed(scene))


def test_a_newer_sidecar_does_not_make_old_weights_the_wanted_ones(scene, tmp_path, monkeypatch):
    file, slow = tmp_path / "m.safetensors", replace(PLAIN, recipe=replace(PLAIN.recipe, lr=0.01))
    first = retrained(scene, PLAIN, 0, file, "plain")
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr("mi_audit.store.targets.write_weights", None)  # killed between the two files
        retrained(scene, slow, 0, file, "plain")
    assert not same(retrained(scene, slow, 0, file, "plain"), first)


def test_weights_without_a_key_are_trained_anew(scene, tmp_path):
    file = tmp_path / "m.safetensors"
    old, _ = fresh_private_model(scene, None, 0, {})
    save_model(file, old, {})
    assert not same(retrained(scene, PLAIN, 0, file, "plain"), old)


@pytest.mark.parametrize(("wanted", "channels", "trained"), AUGMENTED)
def test_images_are_changed_as_the_user_says_or_as_suits_their_colours(scene, wanted, channels, trained):
    pixels = scene.splits.train.pixels[:, :1].expand(-1, channels, -1, -1)
    splits = replace(scene.splits, train=replace(scene.splits.train, pixels=pixels))
    plan = replace(scene.plan, defend=replace(scene.plan.defend, augment=wanted))
    assert retrain.defend_recipe(replace(scene, plan=plan, splits=splits)).augment == trained


def test_it_offers_every_augmentation_there_is():
    (offered,) = [field.type for field in fields(DefendPlan) if field.name == "augment"]
    assert set(get_args(offered)) == {"auto", *get_args(Augmentation)}
    assert DefendTable.model_fields["augment"].annotation == offered


def test_the_manifest_and_the_progress_say_that_frozen_layers_ran_once(scene, tmp_path, monkeypatch):
    notes: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda _self, text: notes.append(text))
    how = replace(PLAIN, composition=compose("tldmi", {}, "linear-probe"))
    phases = retrained(scene, how, 0, tmp_path / "m.safetensors", "frozen").defense["phases"]
    said = phases["main"]["frozen_prefix"]
    assert said.startswith("the frozen prefix, up to net.") and f"main: {said}" in notes
    shifted = replace(how, recipe=replace(how.recipe, augment="shift"))
    assert (
        "frozen_prefix" not in retrained(scene, shifted, 0, tmp_path / "m.safetensors", "s").defense["phases"]["main"]
    )


class Killed(Silent):
    def step(self, label: str, done: int, total: int) -> None:
        del done, total
        if label.startswith("epoch 2"):
            raise KeyboardInterrupt


def test_an_interrupted_training_goes_on_but_not_for_another_start(scene, tmp_path, monkeypatch):
    first, second = (replace(PLAIN, start=start(scene, seed)) for seed in (5, 6))
    wanted = [
        retrained(scene, how, 0, tmp_path / f"{row}.safetensors", "whole") for row, how in enumerate((first, second))
    ]
    file = tmp_path / "m.safetensors"
    with pytest.raises(KeyboardInterrupt):
        retrained(replace(scene, progress=Killed()), first, 0, file, "killed")
    assert len(list(tmp_path.glob("m-*.checkpoint"))) == 1
    epochs: list[str] = []
    monkeypatch.setattr(Silent, "step", lambda _self, label, _done, _total: epochs.append(label))
    assert same(retrained(scene, first, 0, file, "resumed"), wanted[0])
    assert set(epochs) == {"epoch 2/2"} and not list(tmp_path.glob("*.checkpoint"))
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        retrained(replace(scene, progress=Killed()), first, 0, file, "killed")
    assert same(retrained(scene, second, 0, file, "other"), wanted[1])
    assert not list(tmp_path.glob("*.checkpoint"))


def test_the_accuracy_of_a_model_that_hides_its_answers_is_that_of_the_answers(scene):
    noisy = compose("output-noise", {"output-noise": {"deviation": 10.0}}, None)
    model, facts = trained(scene, noisy, start(scene, 5), PLAIN.recipe, 0)
    shown = sum(row.value * row.count for row in facts.accuracy_per_class) / facts.accuracy.count
    assert facts.accuracy.value == pytest.approx(shown) and facts.accuracy.value == model.defense["test_accuracy"]
    assert facts.accuracy != accuracy(model.classifier, scene.splits.test, scene.device)


def test_the_manifest_names_data_and_versions_and_a_kept_model_is_not_written_again(scene, tmp_path, monkeypatch):
    file = tmp_path / "m.safetensors"
    about = retrained(scene, PLAIN, 0, file, "plain").defense
    assert about["data"] == {"train": "train", "val": "val"} and about["versions"]["torch"] == version("torch")
    before = [path.read_bytes() for path in (file, file.with_suffix(".json"))]
    monkeypatch.setattr(retrain, "tool_versions", lambda: dict.fromkeys(about["versions"], "later"))
    retrained(scene, PLAIN, 0, file, "plain")
    assert [path.read_bytes() for path in (file, file.with_suffix(".json"))] == before


def test_no_training_and_no_choice_of_an_epoch_looks_at_test_images(scene):
    plain, splits = replace(PLAIN, recipe=replace(PLAIN.recipe, epochs=3)), scene.splits
    late = Retraining(compose("negls", {}), None, replace(PLAIN.recipe, epochs=8))  # its last quarter alone counts
    for how, counts in ((plain, slice(None)), (late, slice(6, None))):
        made = [
            retrain.fit_private(replace(scene, splits=replace(splits, test=test)), how, 0, how.recipe, None)
            for test in (splits.test, splits.test.select(torch.arange(0)))
        ]
        first, second = (one.model.classifier.state_dict() for one in made)
        assert all(torch.equal(first[name], second[name]) for name in first) and made[0].fit == made[1].fit
        ((_, course),) = made[0].fit.phases
        assert course.val_accuracy == max(epoch.val_accuracy for epoch in course.history[counts])


def test_gates_of_removed_skip_connections_are_open_after_public_weights_came_in():
    """Public training leaves the layer scale of ConvNeXt near its 1e-6: alone, such a branch passes on no signal."""
    net, public = torchvision_convnext(), torchvision_convnext()
    skips.scale(net, factors={"features.5.0.residual": 0.0, "features.5.1.residual": 0.0})
    PublicStart(public.state_dict(), {}).copy_into(Classifier(net, size=64, channels=3, mean=(0.5,), std=(0.5,)))
    assert torch.equal(net.features[0][0].weight, public.features[0][0].weight)
    assert all(torch.equal(block.layer_scale, torch.ones(24, 1, 1)) for block in net.features[5])
    assert net.features[3][0].layer_scale.max() < 1e-5


def test_the_manifest_says_in_which_precision_a_private_training_computed(scene, tmp_path):
    recipe = Recipe(epochs=1, precision="bf16")
    private = compose("dp-sgd", {"epsilon": 50.0, "accountant": "rdp", "secret": False})
    made = retrained(scene, Retraining(private, None, recipe), 0, tmp_path / "private.safetensors", "defended")
    assert made.defense["recipe"] == {**recipe.__dict__, "precision": "32"}
    plain = retrained(scene, Retraining(UNDEFENDED, None, recipe), 0, tmp_path / "plain.safetensors", "undefended")
    assert plain.defense["recipe"] == recipe.__dict__


def test_the_manifest_says_how_much_came_over_scaled_shortcuts_and_what_batch_norms_did(scene, tmp_path):
    net = new_model("built-in:resnet18-small", num_classes=5, channels=1, size=32, mean=(0.5,), std=(0.5,), seed=0)
    small = replace(scene, model=net)
    how = Retraining(compose("ssf", {}), None, Recipe(epochs=1, precision="32"))
    about = retrained(small, how, 0, tmp_path / "ssf.safetensors", "scaled").defense
    told = about["skip_ratios"]
    assert told["before"].keys() == told["after"].keys() and len(told["after"]) == 2
    assert all(share > 0 for share in told["after"].values()) and told["before"] != told["after"]
    assert about["batch_norm"]["frozen"] == 0 < about["batch_norm"]["trained"]
    frozen = Retraining(compose("tldmi", {}, "50%"), None, Recipe(epochs=1, precision="32"))
    partly = retrained(small, frozen, 0, tmp_path / "tldmi.safetensors", "frozen").defense
    assert "skip_ratios" not in partly and partly["batch_norm"]["frozen"] > 0
    assert sum(partly["batch_norm"][key] for key in ("frozen", "trained")) == about["batch_norm"]["trained"]
