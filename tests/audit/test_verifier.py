from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mi_audit.audit import verifier as verifiers
from mi_audit.audit.attack import run_attack
from mi_audit.audit.progress import Silent
from mi_audit.audit.scene import Scene, open_scene
from mi_audit.audit.verifier import Verifier, calibrated, load_verifier, verifier_arch, verifier_lesson, weakness
from mi_audit.core.errors import ConfigError
from mi_audit.core.quantity import Interval, Quantity
from mi_audit.store.targets import load_model
from tests.world import digit_plan


@pytest.fixture(scope="module")
def scene(digits: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory):
    plan = digit_plan(digits, tmp_path_factory.mktemp("verifier") / "run", cache)
    with open_scene(plan, "attack", Silent()) as opened:
        yield opened


@pytest.fixture(scope="module")
def verifier(scene: Scene) -> Verifier:
    return load_verifier(scene, (scene.model,), (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("taken", "size", "arch"),
    [
        (("built-in:cnn", "built-in:cnn-wide"), 32, "built-in:cnn-wide"),
        (("built-in:cnn-wide", "built-in:cnn"), 32, "built-in:cnn"),
        (("timm:resnet18", "built-in:densenet121-small"), 64, "built-in:vgg16-bn-small"),
        (("torchvision:vgg16_bn", "built-in:densenet121-small"), 64, "built-in:resnet18-small"),
        (("built-in:vgg16-bn-small", "built-in:resnet18-small"), 128, "built-in:densenet121-small"),
    ],
)
def test_the_verifier_is_of_another_family_than_the_target_and_if_it_can_the_evaluator(taken, size, arch):
    assert verifier_arch(taken, size) == arch


def test_it_learns_for_as_long_as_the_evaluator_unless_told_otherwise(scene):
    def epochs(**changes: int) -> int:
        lesson = verifier_lesson(replace(scene, plan=replace(scene.plan, **changes)), (scene.model,))
        assert lesson is not None
        return lesson.recipe.epochs

    assert epochs(evaluator_epochs=7) == 7
    assert epochs(evaluator_epochs=7, verifier_epochs=3) == 3


def test_its_rates_are_exact_one_sided_bounds_on_private_photographs(scene, verifier):
    facts = verifier.facts
    assert facts.far.count == facts.sensitivity.count == len(scene.splits.train)
    assert facts.far.interval.high <= 0.01 and facts.far.interval.level == 0.90
    assert facts.far.interval.low <= facts.far.value <= facts.far.interval.high
    assert facts.sensitivity.value > 0.2
    assert "5 classes of digits:5-9" in facts.trained_on and facts.arch == "built-in:cnn-wide"


def test_it_recognises_held_out_people_it_was_not_trained_on_as_often_as_its_card_says(scene, verifier):
    test, train = scene.splits.test, scene.splits.train
    same = verifier.verification.held_out(train.pixels, train.labels).float().mean()
    other = verifier.verification.held_out(train.pixels, (train.labels + 1) % 5).float().mean()
    assert float(same) == pytest.approx(verifier.facts.sensitivity.value)
    assert float(other) < 0.05 < float(same)
    assert bool(verifier.verification.held_out(test.pixels, test.labels).all())  # every picture matches itself
    assert 0 < float(verifier.verification.train(test.pixels, test.labels).float().mean()) < 1


def test_calibration_is_repeatable_and_knows_only_attacked_classes(scene, verifier):
    model = load_model(verifier_file(scene))
    some = calibrated(scene, model, "public", (0, 3))
    again = calibrated(scene, load_model(verifier_file(scene)), "public", (0, 3))
    assert some.facts == again.facts and some.verification.classes.tolist() == [0, 3]
    pixels = scene.splits.test.pixels[:4]
    assert not some.verification.held_out(pixels, torch.full((4,), 2)).any()


def verifier_file(scene: Scene) -> str:
    lesson = verifier_lesson(scene, (scene.model,))
    assert lesson is not None
    return str(verifiers.verifier_file(scene, lesson))


def test_a_second_audit_takes_the_verifier_from_the_cache(scene, verifier, monkeypatch):
    monkeypatch.setattr(verifiers, "fit", None)
    assert load_verifier(scene, (scene.model,), (0, 1, 2, 3, 4)).facts == verifier.facts


def test_classes_without_held_out_photographs_are_named_and_left_out(scene, verifier):
    test = scene.splits.test
    bare = replace(scene, splits=replace(scene.splits, test=test.select((test.labels != 3).nonzero().flatten())))
    found = calibrated(bare, load_model(verifier_file(scene)), "public", (0, 3))
    assert found.verification.classes.tolist() == [0]
    assert any("1 of 2 attacked classes" in warning for warning in scene.warnings)
    none = calibrated(bare, load_model(verifier_file(scene)), "public", (3,))
    assert none.facts is None and "held-out" in none.missing


def test_without_labelled_public_data_there_is_no_verifier_and_the_reason_is_given(scene):
    alike = replace(scene.public, labels=torch.zeros_like(scene.public.labels))
    found = load_verifier(replace(scene, public=alike), (scene.model,), (0, 1))
    assert found.facts is None and found.verification is None
    assert "no labels" in found.missing and "--verifier" in found.missing


@pytest.mark.parametrize("which", ["target", "evaluator"])
def test_the_verifier_is_neither_the_target_nor_the_evaluator(scene, verifier, digits, which):
    named = str(digits) if which == "target" else verifier_file(scene)
    others = (scene.model, load_model(verifier_file(scene)))
    with pytest.raises(ConfigError, match="neither the target nor the evaluator"):
        load_verifier(replace(scene, plan=replace(scene.plan, verifier=named)), others, (0, 1))


def test_a_named_model_is_taken_as_it_is(scene, verifier):
    named = replace(scene, plan=replace(scene.plan, verifier=verifier_file(scene)))
    found = load_verifier(named, (scene.model,), (0, 1, 2, 3, 4))
    assert found.facts.threshold == verifier.facts.threshold and "as given" in found.facts.trained_on


def rate(value: float, low: float, high: float) -> Quantity:
    interval = Interval(low=low, high=high, level=0.9, method="exact")
    return Quantity(value=value, unit="share", count=100, counted="trials", interval=interval)


def test_the_card_says_plainly_how_weak_it_is():
    strong = weakness(rate(0.001, 0.0, 0.009), rate(0.95, 0.9, 0.98))
    assert "recognises 95% of genuine photographs (at least 90%)" in strong and "at most 0.9% of strangers" in strong
    assert "too weak" not in strong and "too few" not in strong
    assert "too weak to certify privacy" in weakness(rate(0.001, 0.0, 0.009), rate(0.8, 0.79, 0.9))
    assert "too few strangers" in weakness(rate(0.0, 0.0, 0.02), rate(0.95, 0.9, 0.98))


def test_without_a_verifier_an_audit_still_runs_and_says_what_is_missing(digits, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(verifiers, "labelled_public", refuse)
    plan = digit_plan(digits, tmp_path / "run", cache)
    report = run_attack(replace(plan, seeds=1, attacks=plan.attacks[:1], metrics=("attack-accuracy", "exposure")))
    found = report.attacks[0].measurement("exposure")
    assert report.verifier is None and found.value is None and "--verifier" in found.reason
    assert [one.name for one in report.attacks[0].over_control] == ["leakage_acc1", "leakage_acc1"]


def refuse(public):
    raise ConfigError(f"expected labels, got none in {public.name}")


def test_an_untrained_twin_is_attacked_on_request(digits, cache, tmp_path):
    plan = digit_plan(digits, tmp_path / "run", cache)
    plan = replace(plan, controls=("untrained",), seeds=1, attacks=plan.attacks[:1], metrics=("attack-accuracy",))
    report = run_attack(plan)
    assert [(one.name, one.role) for one in report.attacks] == [("gmi", "attack"), ("control:untrained:gmi", "control")]
    control = report.attacks[1]
    assert control.queries["white-box"] > 0 and control.measurement("attack_acc1").value is not None
    assert [one.protocol.partition("-over-")[2] for one in report.attacks[0].over_control] == ["control:untrained:gmi"]
