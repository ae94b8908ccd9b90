"""Attacks that need more than a prior: everything is fitted once per target, kept, reported and estimated."""

from dataclasses import replace
from pathlib import Path

import pytest

from mi_audit.audit import fitting
from mi_audit.audit.attack import run_attack
from mi_audit.audit.estimate import estimate
from mi_audit.audit.fitting import Fitted, assemble
from mi_audit.audit.generators import describe_prior
from mi_audit.audit.plan import AttackPlan, Plan
from mi_audit.core.errors import ConfigError
from mi_audit.core.prior import AssistedPrior
from mi_audit.core.report import AuditReport, PriorFacts
from mi_audit.priors.lomma_students import LommaStudents
from mi_audit.store.cache import Cache
from mi_audit.store.datasets import load_dataset
from mi_audit.store.targets import load_model
from tests.toy import ToyPrior, surrogates
from tests.world import digit_plan

ATTACKS = tuple(AttackPlan(name=name, settings={"steps": 6, "restarts": 2}) for name in ("gmi", "lomma"))
STUDENTS = {"networks": ["built-in:cnn"], "epochs": 1, "images": 40}


def plan(digits: Path, out: Path, cache: Path) -> Plan:
    base = digit_plan(digits, out, cache)
    settings = {**base.prior_settings, "lomma-students": STUDENTS}
    return replace(base, attacks=ATTACKS, prior_settings=settings, metrics=("attack-accuracy",))


@pytest.fixture(scope="module")
def run(digits: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AuditReport]:
    out = tmp_path_factory.mktemp("assisted") / "run"
    return out, run_attack(plan(digits, out, cache))


def test_prior_and_students_are_in_the_report_once(run):
    report = run[1]
    assert [prior.name for prior in report.priors] == ["gmi-gan", "lomma-students"]
    students = report.priors[1]
    assert students.samples is None and len(students.sha256) == 64
    assert students.settings["target_queries"] == 40 and students.settings["agreement_images"] == 4
    assert 0 <= students.settings["agreement"][0] <= 1
    assert any("Re-thinking Model Inversion" in paper for paper in report.papers)


def test_the_attack_is_named_by_its_prior_and_only_priors_are_drawn_from(run):
    names = {attack.name: attack.prior for attack in run[1].attacks}
    assert names["lomma"] == "gmi-gan"
    assert [name for name in names if name.startswith("control:random-prior")] == ["control:random-prior"]
    assert run[1].attacks[1].work["student_forward"] == 6 * 2 * 2 * 2  # steps, restarts, classes, seeds


def test_a_second_run_fits_nothing(run, digits: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LommaStudents, "fit", lambda *_args, **_more: pytest.fail("fitted again"))
    again = run_attack(plan(digits, tmp_path / "run", cache))
    assert again == replace(run[1], command=again.command)


def test_students_belong_to_the_target_and_to_how_it_is_fed(run, digits: Path, cache: Path):
    model, public = load_model(str(digits)), load_dataset("digits:5-9", 32, 1)
    other = model.with_input(mean=(0.4,))
    files = [
        fitting.cache_file(Cache(cache), "lomma-students", LommaStudents(), public, 32, one) for one in (model, other)
    ]
    assert files[0] != files[1]


def test_an_estimate_covers_students_and_the_attack_with_them(run, digits: Path, tmp_path: Path):
    found = dict(estimate(plan(digits, tmp_path / "run", tmp_path / "cache"), "attack").rows)
    assert any(name.startswith("prior lomma-students, 1 steps") for name in found)
    assert any(name.startswith("attack lomma, 48 image-steps") for name in found)


def test_students_are_not_trained_without_a_target(digits: Path, cache: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="fitted by `mi-audit attack`"):
        describe_prior(plan(digits, tmp_path / "run", cache), "lomma-students")


def test_parts_are_one_prior_and_then_surrogates():
    facts = PriorFacts(name="x", sha256="1", settings={})
    prior, students = Fitted("a", ToyPrior(), facts), Fitted("b", surrogates(), replace(facts, sha256="2"))
    assert isinstance(assemble([prior]).prior, ToyPrior) and assemble([prior]).sha256 == "1"
    both = assemble([prior, students])
    assert isinstance(both.prior, AssistedPrior) and both.prior.search is ToyPrior().w and both.sha256 == "1+2"
    for wrong in ([students], [students, prior], [prior, prior]):
        with pytest.raises(ConfigError, match="one prior, then surrogates or nothing"):
            assemble(wrong)
