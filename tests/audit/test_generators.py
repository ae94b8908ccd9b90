from dataclasses import replace
from pathlib import Path

import pytest

from mi_audit.audit.attack import run_attack
from mi_audit.audit.generators import describe_prior, sample_prior, train_prior
from mi_audit.audit.plan import ModelPlan, Plan
from mi_audit.audit.progress import Silent
from mi_audit.core.errors import ConfigError, DataError
from mi_audit.store.images import read_png
from tests.world import digit_plan


def plan(cache: Path, **changes: object) -> Plan:
    settings = {"gmi-gan": {"steps": 4, "batch_size": 16}}
    base = Plan(model=ModelPlan(ref="none"), public="digits:5-9", size=32, profile="quick", cache=cache)
    return replace(base, prior_settings=settings, **changes)


def test_a_prior_is_trained_once_and_then_found(tmp_path: Path):
    assert describe_prior(plan(tmp_path), "gmi-gan")["trained"] is False
    first = train_prior(plan(tmp_path), "gmi-gan", Silent())
    again = train_prior(plan(tmp_path), "gmi-gan", Silent())
    assert first == again == describe_prior(plan(tmp_path), "gmi-gan")
    assert first["trained"] and Path(str(first["file"])).is_file()


def test_an_audit_uses_the_prior_that_was_trained_ahead(digits: Path, tmp_path: Path):
    ahead = train_prior(plan(tmp_path / "cache"), "gmi-gan", Silent())
    audit = digit_plan(digits, tmp_path / "run", tmp_path / "cache")
    report = run_attack(replace(audit, seeds=1, attacks=audit.attacks[:1]))
    assert report.priors[0].sha256 == ahead["sha256"]


def test_samples_are_one_picture_on_a_grid(tmp_path: Path):
    train_prior(plan(tmp_path), "gmi-gan", Silent())
    sample_prior(plan(tmp_path), "gmi-gan", 12, tmp_path / "sheet.png")
    assert tuple(read_png(tmp_path / "sheet.png").shape) == (1, 2 * 32, 8 * 32)


def test_without_a_trained_prior_there_is_nothing_to_sample(tmp_path: Path):
    with pytest.raises(DataError, match="generator train"):
        sample_prior(plan(tmp_path), "gmi-gan", 4, tmp_path / "sheet.png")


def test_public_images_and_a_known_name_are_needed(tmp_path: Path):
    with pytest.raises(DataError, match="--public"):
        describe_prior(plan(tmp_path, public=None), "gmi-gan")
    with pytest.raises(ConfigError, match="did you mean 'gmi-gan'"):
        describe_prior(plan(tmp_path), "gmi_gan")
