from dataclasses import replace

import numpy as np
import torch

from mi_audit.audit import registry
from mi_audit.audit.attack import run_attack
from mi_audit.audit.control import RandomPriorSamples
from mi_audit.audit.measure import per_class
from mi_audit.core.run import Run
from tests.toy import ToyPrior
from tests.world import digit_plan


def test_means_are_taken_in_every_class_and_seed():
    values = torch.tensor([1.0, 0.0, 1.0, 1.0])
    rows = per_class(values, torch.tensor([3, 3, 3, 0]), torch.tensor([0, 0, 1, 1]))
    assert [(row.label, row.seed, row.value, row.count) for row in rows] == [
        (0, 1, 1.0, 1),
        (3, 0, 0.5, 2),
        (3, 1, 1.0, 1),
    ]


def test_the_control_does_not_depend_on_which_classes_run_together():
    sampler, prior = RandomPriorSamples(per_class=3), ToyPrior()
    whole = sampler.run(prior, torch.tensor([0, 1, 2]), Run(seed=4))
    alone = sampler.run(prior, torch.tensor([2]), Run(seed=4))
    assert torch.equal(whole.images[6:], alone.images)
    assert whole.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_the_control_draws_other_images_for_every_class_and_seed():
    sampler, prior = RandomPriorSamples(per_class=2), ToyPrior()
    images = [sampler.run(prior, torch.tensor([0, 1]), Run(seed=seed)).images.flatten(1) for seed in (0, 1)]
    assert len(np.unique(torch.cat(images).numpy(), axis=0)) == 8


def measured(digits, cache, folder, **changes):
    """Measurements by name of one attack under one seed."""
    plan = digit_plan(digits, folder / "run", cache)
    report = run_attack(replace(plan, seeds=1, attacks=plan.attacks[:1], **changes))
    return {one.name: one for one in report.attacks[0].measurements}


def test_all_metrics_run_but_those_that_wait_to_be_named(digits, cache, tmp_path):
    found = measured(digits, cache, tmp_path)
    usual = [name for metric in registry.metrics().values() if metric.default for name in metric.names]
    assert list(found) == ["target_acceptance", *usual]
    assert not {"kes", "precision_nearest_k3", "lpips_alex_min_train"} & set(found)
    assert found["share_closer_pixel"].value is not None
    assert "held-out images" in found["near_duplicates"].reason and found["near_duplicates"].value is not None


def test_a_metric_that_is_named_runs_alone(digits, cache, tmp_path):
    found = measured(digits, cache, tmp_path, metrics=("kes",))
    assert list(found) == ["target_acceptance", "kes"]
    assert 0 <= found["kes"].value <= 1 and found["kes"].protocol.startswith("kes/identity/all/none@built-in:cnn-wide#")


def test_pictures_of_an_earlier_model_are_replaced_and_none_outlives_a_run_without_pictures(digits, cache, tmp_path):
    plan = replace(digit_plan(digits, tmp_path / "run", cache), seeds=1, controls=())
    plan = replace(plan, attacks=plan.attacks[:1], metrics=("attack-accuracy",))
    run_attack(plan)
    pictures = {file: file.read_bytes() for file in (tmp_path / "run/images").rglob("*.png")}
    assert any("nearest" in file.parts for file in pictures) and any("gmi" in file.parts for file in pictures)
    for file in pictures:
        file.write_bytes(b"of another model")
    run_attack(plan)
    assert {file: file.read_bytes() for file in pictures} == pictures
    run_attack(replace(plan, images="none"))
    assert not list((tmp_path / "run").rglob("*.png")) and not (tmp_path / "run/jobs").exists()
