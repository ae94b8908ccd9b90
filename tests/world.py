"""A small real audit: a digit classifier, its public digits, and settings that finish in seconds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mi_audit.audit import attack
from mi_audit.audit.plan import AttackPlan, DefendPlan, ModelPlan, Plan
from mi_audit.store.datasets import load_splits
from mi_audit.store.targets import new_model, save_model
from mi_audit.train.classifier import fit
from mi_audit.train.recipe import Recipe

SMOKE: Mapping[str, Mapping[str, object]] = {
    "gmi": {"steps": 6, "restarts": 2},
    "ppa": {"pool": 16, "restarts": 3, "keep": 2, "steps": 4, "views": 3},
}


def judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluator and verifier of the first run judge the others as well: they take most of the time of a tiny run."""
    usual, known = attack.load_court, []
    monkeypatch.setattr(
        attack, "load_court", lambda scene: known[0] if known else known.append(usual(scene)) or known[0]
    )


def silent(label: str, done: int, total: int) -> None:
    del label, done, total


def digit_model(folder: Path) -> Path:
    """A classifier of the digits 0-4, trained for a few seconds, with its manifest."""
    splits = load_splits("digits:0-4", 32, 1)
    model = new_model("built-in:cnn", num_classes=5, channels=1, size=32, mean=(0.5,), std=(0.5,), seed=0)
    recipe = Recipe(epochs=3, lr=0.05, precision="32")
    fit(model.classifier, splits.train, splits.val, recipe, seed=0, device="cpu", on_step=silent)
    save_model(folder / "digits.safetensors", replace(model, class_names=splits.train.classes), {})
    return folder / "digits.safetensors"


def digit_plan(model: str | Path, out: Path, cache: Path) -> Plan:
    """Both attacks on two digits under two seeds, with a prior and an evaluator trained for a moment."""
    return Plan(
        model=ModelPlan(ref=str(model)),
        private="digits:0-4",
        public="digits:5-9",
        size=32,
        attacks=tuple(AttackPlan(name=name, settings=settings) for name, settings in SMOKE.items()),
        classes="0,3",
        profile="quick",
        seeds=2,
        evaluator_epochs=2,
        prior_settings={"gmi-gan": {"steps": 4, "batch_size": 16}},
        precision="32",
        chunk=1,
        out=out,
        cache=cache,
    )


def defend_plan(out: Path, cache: Path) -> Plan:
    """TL-DMI on a fresh small network, one pair of models, trained for one epoch."""
    plan = digit_plan("built-in:cnn", out, cache)
    return replace(plan, seeds=1, defend=DefendPlan(method="tldmi", freeze="80%", epochs=1))
