"""Positive and negative controls of the whole suite: what leaks must fail, what cannot be judged must not pass."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mi_audit.audit import registry
from mi_audit.audit.attack import run_attack
from mi_audit.audit.plan import AttackPlan, DecisionPlan, ModelPlan, Plan, RulePlan
from mi_audit.core.errors import TargetError
from mi_audit.core.paper import Paper
from mi_audit.core.prior import LatentSpace, Prior, PriorRecipe
from mi_audit.core.report import AuditReport, ValidityFlag
from mi_audit.nn.architectures import built_in
from mi_audit.store.datasets import load_splits
from mi_audit.store.targets import load_model, new_model, save_model
from mi_audit.train.classifier import fit
from mi_audit.train.recipe import Recipe
from tests.world import digit_plan, silent

LEAK = RulePlan(id="MI001", when="attack_acc1 - control.attack_acc1 > 0.2")
EXPOSED = DecisionPlan(policy="audit-v1", tau=0.6)  # of ten digits a random picture shows the right one now and then
PPA = {"pool": 150, "restarts": 4, "keep": 2, "steps": 12, "views": 3}


class MixtureSpace(LatentSpace):
    """Mixtures of example pictures, most of them nearly one of the examples."""

    def __init__(self, examples: Tensor) -> None:
        self.examples, self.width = examples, len(examples)

    def draw(self, noise: Tensor) -> Tensor:
        return noise

    def decode(self, latents: Tensor) -> Tensor:
        return torch.einsum("be,echw->bchw", (6 * latents).softmax(dim=1), self.examples)

    def project(self, latents: Tensor) -> Tensor:
        return latents


class Mixture(Prior):
    def __init__(self, examples: Tensor) -> None:
        self.z = MixtureSpace(examples)


@dataclass(frozen=True, kw_only=True)
class Contaminated(PriorRecipe):
    """A prior that holds pictures of the very people under attack."""

    paper: ClassVar = Paper(title="none", authors="none", venue="none", url="none")
    smoke: ClassVar = {}

    def fit(self, public, target, seed, device, on_step, checkpoint=None) -> dict[str, Tensor]:
        del target, seed, device, on_step, checkpoint
        rows = torch.cat([(public.labels == label).nonzero().flatten()[:5] for label in public.labels.unique()])
        return {"examples": public.images(rows)}

    def restore(self, weights: Mapping[str, Tensor], size: int, channels: int, device: str) -> Prior:
        del size, channels
        return Mixture(weights["examples"].to(device))

    def describe(self, size: int, channels: int) -> dict[str, object]:
        return {"size": size, "channels": channels}

    def planned_steps(self, images: int, size: int, channels: int) -> int:
        del images, size, channels
        return 1

    def shortened(self, steps: int) -> PriorRecipe:
        del steps
        return self


@pytest.fixture
def contaminated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "priors", lambda: {"gmi-gan": Contaminated})
    yield


class Rounded(nn.Module):
    """Hides the gradient: the logits are right, their slope is zero."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.round()


def rounded(num_classes: int = 5) -> nn.Module:
    net = built_in("cnn", num_classes, 1)
    net.append(Rounded())
    return net


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of all ten digits."""
    splits = load_splits("digits:0-9", 32, 1)
    model = new_model("built-in:cnn", num_classes=10, channels=1, size=32, mean=(0.5,), std=(0.5,), seed=0)
    recipe = Recipe(epochs=3, lr=0.05, precision="32")
    fit(model.classifier, splits.train, splits.val, recipe, seed=0, device="cpu", on_step=silent)
    file = tmp_path_factory.mktemp("ten") / "ten.safetensors"
    save_model(file, replace(model, class_names=splits.train.classes), {})
    return file


def leaky_plan(model: Path, out: Path, cache: Path) -> Plan:
    return replace(
        digit_plan(model, out, cache),
        private="digits:0-9", public="digits:0-9", classes="all", seeds=1, chunk=10, evaluator_epochs=4,
        attacks=(AttackPlan(name="ppa", settings=PPA),), prior_settings={}, rules=(LEAK,), decision=EXPOSED,
        verifier="built-in:cnn", metrics=("attack-accuracy", "exposure"),
    )  # fmt: skip


def flag(report: AuditReport, name: str) -> ValidityFlag:
    return next(one for one in report.validity if one.id.startswith(name))


def outcomes(report: AuditReport) -> dict[str, Any]:
    assert report.verdict is not None
    return {rule.id: (rule.outcome, rule.reason) for rule in report.verdict.rules}


def test_a_model_that_leaks_fails(ten: Path, cache: Path, tmp_path: Path, contaminated: None):
    plan = replace(leaky_plan(ten, tmp_path / "run", cache), positive_control=True, declared_accuracy=0.9)
    report = run_attack(plan)
    assert report.verdict.outcome == "FAIL", outcomes(report)
    assert flag(report, "V2").passed, flag(report, "V2")
    assert report.attacks[-1].name == "control:positive:ppa" and report.attacks[-1].role == "control"
    assert outcomes(report)["audit-v1"][0] == outcomes(report)["MI001"][0] == "FAIL", outcomes(report)
    assert report.verdict.exposure.exposed >= 8
    leakage = {one.protocol.partition("-over-")[2]: one for one in report.attacks[0].over_control}
    assert {"control:random-prior", "control:permuted-labels:ppa"} == set(leakage)
    assert "90.0% as declared" in flag(report, "V1").detail
    assert all(one.value > 0.5 and one.interval.low > 0 for one in leakage.values())


def test_a_suite_that_cannot_break_a_leaky_model_passes_nobody(digits: Path, cache: Path, tmp_path: Path):
    plan = replace(
        digit_plan(digits, tmp_path / "run", cache),
        attacks=(AttackPlan(name="gmi", settings={"steps": 6, "restarts": 2}),),
        seeds=1, classes="all", positive_control=True, metrics=("attack-accuracy", "exposure"), chunk=3,
        decision=replace(EXPOSED, tau=0.99), rules=(RulePlan(id="MI001", when="attack_acc1 > 0.99"),),
    )  # fmt: skip
    report = run_attack(plan)
    assert flag(report, "V2").passed is False and "of 5 people to the verifier" in flag(report, "V2").detail
    assert report.verdict.outcome == outcomes(report)["audit-v1"][0] == outcomes(report)["MI001"][0] == "INCONCLUSIVE"
    assert all("V2" in outcomes(report)[rule][1] for rule in ("audit-v1", "MI001"))
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "run/jobs").glob("control-positive-*")}
    assert len(stamps) == 2  # five classes in chunks of three
    assert run_attack(plan) == report
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps


def test_a_model_with_random_weights_is_not_judged_at_all(digits: Path, cache: Path, tmp_path: Path):
    model = load_model(str(digits))
    for weight in model.classifier.net.parameters():
        weight.data.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.1)
    save_model(tmp_path / "random.safetensors", model, {})
    plan = replace(digit_plan(tmp_path / "random.safetensors", tmp_path / "run", cache), decision=EXPOSED)
    with pytest.raises(TargetError) as refused:
        run_attack(plan)
    assert refused.value.exit_code == 3


def test_a_model_without_gradients_is_inconclusive(digits: Path, cache: Path, tmp_path: Path):
    healthy = load_model(str(digits))
    broken = ModelPlan(ref=str(digits), arch="py:tests.audit.test_decisions:rounded", channels=1, num_classes=5)
    plan = replace(
        digit_plan(digits, tmp_path / "run", cache),
        model=broken, seeds=1, classes="all", decision=EXPOSED, rules=(RulePlan(id="MI001", when="attack_acc1 > 0.9"),),
        metrics=("attack-accuracy", "exposure"), positive_control=False,
    )  # fmt: skip
    report = run_attack(plan)
    assert report.targets[0].sha256 == healthy.sha256
    assert flag(report, "G2").passed is False and flag(report, "G0").passed
    assert report.verdict.outcome == "INCONCLUSIVE", outcomes(report)
    assert outcomes(report)["audit-v1"][0] == "INCONCLUSIVE", outcomes(report)
    assert any("G2" in reason for reason in report.verdict.reasons)


def test_a_healthy_model_raises_no_flag_about_itself(digits: Path, cache: Path, tmp_path: Path):
    plan = replace(
        digit_plan(digits, tmp_path / "run", cache), seeds=1, classes="all", metrics=("attack-accuracy", "exposure")
    )
    report = run_attack(replace(plan, attacks=plan.attacks[:1]))
    assert [flag(report, name).passed for name in ("G0", "G1", "G2", "G6")] == [True] * 4
    assert flag(report, "G4").passed is None and "not run" in flag(report, "G4").detail
    assert "descent on the pixels reaches 100%" in flag(report, "G3").detail
    assert report.verifier.arch.startswith("built-in:cnn") and report.verifier.arch != "built-in:cnn"
