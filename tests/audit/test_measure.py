from dataclasses import replace

from mi_audit.audit import registry
from mi_audit.audit.attack import run_attack
from tests.world import digit_plan


def measured(digits, cache, folder, **changes):
    """Measurements by name of one attack under one seed."""
    plan = digit_plan(digits, folder / "run", cache)
    report = run_attack(replace(plan, seeds=1, attacks=plan.attacks[:1], **changes))
    return {one.name: one for one in report.attacks[0].measurements}


def test_all_metrics_run_but_those_that_wait_to_be_named(digits, cache, tmp_path):
    found = measured(digits, cache, tmp_path)
    usual = [name for metric in registry.metrics().values() if metric.default for name in metric.names]
    assert list(found) == ["target_acceptance", *usual]
    assert "kes" not in found and "precision_nearest_k3" not in found
    assert found["share_closer_pixel"].value is not None
    assert "held-out images" in found["near_duplicates"].reason and found["near_duplicates"].value is not None


def test_a_metric_that_is_named_runs_alone(digits, cache, tmp_path):
    found = measured(digits, cache, tmp_path, metrics=("kes",))
    assert list(found) == ["target_acceptance", "kes"]
    assert 0 <= found["kes"].value <= 1 and found["kes"].protocol.startswith("kes/identity/all/none@built-in:cnn-wide#")
