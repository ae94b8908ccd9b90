"""The demonstration: real handwritten digits, nothing downloaded, everything trained on the spot."""

from pathlib import Path

from mi_audit.audit.defend import run_defense
from mi_audit.audit.plan import AttackPlan, DefendPlan, ModelPlan, Plan
from mi_audit.audit.progress import ProgressSink
from mi_audit.core.report import Comparison

SEEDS = 3
PRIOR_STEPS = 500  # of the 800 of `quick`: on digits the attacks were as strong, and it is the longest part of the demo


def demo_plan(out: Path | None, seed: int, cache: Path | None, seeds: int = SEEDS) -> Plan:
    """The digits 0-4 are private, 5-9 public, as the field does with MNIST; TL-DMI freezes 80 % of the depth."""
    return Plan(
        model=ModelPlan(ref="built-in:cnn", num_classes=5, channels=1, size=32),
        private="digits:0-4",
        public="digits:5-9",
        size=32,
        attacks=(AttackPlan(name="gmi"), AttackPlan(name="ppa", settings={"flips": False})),  # a mirrored digit is none
        profile="quick",
        prior_settings={"gmi-gan": {"steps": PRIOR_STEPS}},
        early_stop=True,
        seed=seed,
        seeds=seeds,
        out=out or Path("runs") / "demo",
        cache=cache,
        defend=DefendPlan(method="tldmi", freeze="80%"),
        command="mi-audit demo" + (f" --seed {seed}" if seed else ""),
    )


def run_demo(out: Path | None, seed: int, cache: Path | None, progress: ProgressSink) -> Comparison:
    """Train, attack, defend and attack again on scikit-learn's digits; writes the same run folder as `defend`."""
    return run_defense(demo_plan(out, seed, cache), progress)
