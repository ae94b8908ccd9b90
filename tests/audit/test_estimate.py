from dataclasses import replace
from pathlib import Path

import pytest

from mi_audit.audit import estimate as module
from mi_audit.audit.estimate import estimate
from mi_audit.audit.plan import DecisionPlan
from mi_audit.core.errors import ConfigError
from mi_audit.store.targets import new_model, save_model
from tests.world import defend_plan, digit_plan


@pytest.fixture(autouse=True)
def one_second_per_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second later than the last."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(ticks)))


def row(found: module.Estimate, start: str) -> str:
    return next(value for name, value in found.rows if name.startswith(start))


def test_an_attack_is_scaled_up_from_a_probe(digits: Path, cache: Path, tmp_path: Path):
    plan = replace(digit_plan(digits, tmp_path / "run", tmp_path / "cache"), batch_size=4)
    found = estimate(plan, "attack")
    assert found.jobs == 2 * 2 * 2  # attacks, classes in chunks of one, seeds
    assert row(found, "prior gmi-gan, 4 steps") == "about 1 s"  # a second for 3 steps, 4 to do
    steps = 2 * 6 * 2 * 2  # restarts, steps, classes, seeds; 3 steps of 4 images took a second
    assert row(found, "attack gmi, 48 image-steps") == f"about {steps / 12:.0f} s"
    assert not (tmp_path / "run").exists()


def test_the_positive_control_takes_as_long_as_the_attacks_on_one_model(digits: Path, cache: Path, tmp_path: Path):
    plan = replace(digit_plan(digits, tmp_path / "run", tmp_path / "cache"), batch_size=4, positive_control=True)
    found = estimate(plan, "attack")
    assert found.jobs == 2 * 2 * 2 * 2
    assert row(found, "positive control gmi, 48 image-steps") == row(found, "attack gmi, 48 image-steps")
    both = estimate(replace(defend_plan(tmp_path / "run", tmp_path / "cache"), positive_control=True), "defend")
    assert both.jobs == 2 * 2 * 3  # attacks, classes; undefended, defended, and leaky once for both
    assert row(both, "attack gmi, 48 image-steps") and row(both, "positive control gmi, 24 image-steps")


def test_views_cost_passes_through_the_target(digits: Path, cache: Path, tmp_path: Path):
    plan = replace(digit_plan(digits, tmp_path / "run", tmp_path / "cache"), batch_size=4, views=11)
    found = estimate(plan, "attack")
    # a second for 3 steps of 4 images through both networks, and again for each of 10 more passes of the target
    assert row(found, "attack gmi, 48 image-steps of 11 views") == f"about {48 / 12 * 11:.0f} s"


def test_a_defense_trains_and_attacks_two_models_per_seed(cache: Path, tmp_path: Path):
    found = estimate(replace(defend_plan(tmp_path / "run", tmp_path / "cache"), seeds=3), "defend")
    assert found.jobs == 2 * 2 * 3 * 2
    assert row(found, "training of 3 undefended models") and row(found, "training of 3 models with tldmi")


def test_models_of_controls_are_trained_and_attacked_too(digits: Path, cache: Path, tmp_path: Path):
    plan = replace(digit_plan(digits, tmp_path / "run", cache), controls=("permuted", "untrained", "counterfactual"))
    found = estimate(plan, "attack")
    assert found.jobs == 3 * 2 * 2 * 2  # the model itself, an untrained and a counterfactual one
    assert row(found, "training of 2 counterfactual models (once)") and row(found, "public start (once)")
    assert row(found, "control counterfactual ppa") == row(found, "attack ppa")
    other = tmp_path / "other.safetensors"
    save_model(
        other, new_model("built-in:cnn", num_classes=5, channels=1, size=32, mean=(0.5,), std=(0.5,), seed=1), {}
    )
    names = [name for name, _ in estimate(replace(plan, counterfactual=str(other)), "attack").rows]
    assert not any("training of" in name or "public start" in name for name in names)
    assert any(name.startswith("control counterfactual gmi") for name in names)


def test_both_sides_of_a_defense_have_counterfactual_models(cache: Path, tmp_path: Path):
    plan = replace(defend_plan(tmp_path / "run", cache), seeds=3, controls=("counterfactual",))
    assert row(estimate(plan, "defend"), "training of 6 counterfactual models")


def test_a_control_that_cannot_run_is_refused_by_the_estimate(digits: Path, cache: Path, tmp_path: Path):
    plan = replace(digit_plan(digits, tmp_path / "run", cache), counterfactual="m.safetensors")
    with pytest.raises(ConfigError, match="expected counterfactual among the controls"):
        estimate(plan, "attack")


def test_what_is_cached_costs_nothing(digits: Path, cache: Path, tmp_path: Path):
    from mi_audit.audit.attack import run_attack

    plan = digit_plan(digits, tmp_path / "run", cache)
    run_attack(replace(plan, seeds=1, attacks=plan.attacks[:1]))
    found = estimate(replace(plan, out=tmp_path / "other"), "attack")
    for what in ("prior gmi-gan", "evaluator built-in:cnn-wide", "verifier built-in:cnn-wide"):
        assert row(found, f"{what} (cached)") == "about 0 s"


def test_a_gate_that_may_stop_early_makes_the_estimate_an_upper_bound(digits: Path, cache: Path, tmp_path: Path):
    plan = digit_plan(digits, tmp_path / "run", tmp_path / "cache")
    assert row(estimate(plan, "attack"), "attacked") == "2 classes, 2 seed(s), 8 jobs"
    decision = DecisionPlan(policy="audit-v1", sequential=True)
    assert row(estimate(replace(plan, decision=decision, positive_control=False), "attack"), "attacked").startswith(
        "at most 2 classes"
    )


def test_a_defense_that_cannot_be_built_is_refused_before_the_probe(cache: Path, tmp_path: Path):
    plan = defend_plan(tmp_path / "run", cache)
    with pytest.raises(ConfigError, match="negls"):
        estimate(replace(plan, defend=replace(plan.defend, method="negls+ca", freeze=None)), "defend")


def test_a_search_of_the_freeze_point_is_counted(cache: Path, tmp_path: Path):
    plan = defend_plan(tmp_path / "run", cache)
    found = estimate(replace(plan, defend=replace(plan.defend, freeze="auto")), "defend")
    assert row(found, "search of the freeze point")
