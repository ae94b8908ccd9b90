"""All white-box attacks against one model, side by side in one Markdown table.

    python examples/compare_attacks.py digits --out runs/compare-digits
    python examples/compare_attacks.py faces model.safetensors faces/private faces/public \\
        --classes random:10 --precision bf16 --out runs/compare-faces

`digits` trains a small classifier of the digits 0-4 first; the attackers know 5-9. Every attack has its laptop-size
settings (`--profile quick`). Run it again after an interrupt: finished jobs are kept.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from mi_audit.audit import registry
from mi_audit.audit.attack import run_attack
from mi_audit.audit.plan import AttackPlan, ModelPlan, Plan
from mi_audit.cli.console import Lines
from mi_audit.core.report import AttackResult, AuditReport, Quantity
from mi_audit.core.target import Access
from mi_audit.store.datasets import load_splits
from mi_audit.store.targets import new_model, save_model
from mi_audit.train.classifier import fit
from mi_audit.train.recipe import Recipe

UPRIGHT: dict[str, dict[str, object]] = {  # no digit is mirrored
    name: {"flips": False} for name in ("ppa", "ppdg-mi", "if-gmi")
}
MIRRORED: dict[str, dict[str, object]] = {  # a mirrored face is the same person's
    name: {"flip": 0.5} for name in ("plg-mi", "mirror", "deep-inversion")
}
FACES: dict[str, dict[str, object]] = {
    "gmi-gan": {"flips": True},
    "kedmi-gan": {"flips": True},
    "plg-cgan": {"flip": 0.5, "steps": 700},  # of 4,600: every step asks the target, which takes hours on a core
    "stylegan2": {"flips": True},
}
PRIVATE, PUBLIC = "digits:0-4", "digits:5-9"


def white_box() -> tuple[str, ...]:
    """Names of the attacks that need the weights."""
    return tuple(n for n, a in registry.attacks().items() if a.threat_model()[0].access == Access.WHITE_BOX)


def digit_model(file: Path) -> Path:
    """A classifier of the digits 0-4, trained once."""
    if not file.is_file():
        splits = load_splits(PRIVATE, 32, 1)
        model = new_model("built-in:cnn", num_classes=5, channels=1, size=32, mean=(0.5,), std=(0.5,), seed=0)
        recipe = Recipe(epochs=12, lr=0.05, precision="32")
        fit(model.classifier, splits.train, splits.val, recipe, seed=0, device="cpu", on_step=lambda *_: None)
        save_model(file, model, {})
    return file


def with_interval(found: Quantity | None) -> str:
    """`95.0 % [92.0, 98.0]`, or a distance in its own unit."""
    if found is None or found.value is None:
        return "-"
    scale, sign = (100, " %") if found.unit == "share" else (1, "")
    ends = f" [{scale * found.interval.low:.3g}, {scale * found.interval.high:.3g}]" if found.interval else ""
    return f"{scale * found.value:.3g}{sign}{ends}"


def seconds_of(run: Path) -> dict[str, float]:
    """Seconds of every job by attack, seed and classes; of several with other settings the last one."""
    seconds = json.loads((run / "timing.json").read_text())["jobs"]
    done = sorted((run / "jobs").glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    return {file.stem.rpartition("-")[0]: seconds.get(file.stem, 0.0) for file in done}


def rows(report: AuditReport, seconds: dict[str, float]) -> Iterator[str]:
    """One line for each attack and control, the best attack first."""
    yield "| attack | prior | top-1 | exposed | KNN distance | accepted | s / picture | G passes | T passes |"
    yield "|---|---|---|---|---|---|---|---|---|"

    def leaked(one: AttackResult) -> tuple[bool, float]:
        found = one.measurement("attack_acc1")
        return one.role != "attack", -(found.value or 0.0) if found else 0.0

    for one in sorted(report.attacks, key=leaked):
        names = ("attack_acc1", "exposure", "knn_l2sq_min", "target_acceptance")
        cells = [with_interval(one.measurement(name)) for name in names]
        accepted = one.measurement("target_acceptance")
        pictures = accepted.count if accepted else 1
        spent = sum(s for job, s in seconds.items() if job.startswith(f"{one.name.replace(':', '-')}-s"))
        passes = [sum(n for key, n in one.work.items() if key.startswith(net)) for net in ("generator", "target")]
        effort = [f"{spent / pictures:.2g}", *(f"{count / pictures:,.0f}" for count in passes)]
        yield f"| {' | '.join([one.name, one.prior, *cells, *(effort if accepted else ('-',) * 3)])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "faces"), help="faces may be mirrored, digits may not")
    parser.add_argument("model", nargs="?", help="for faces: the model file, its private images, and public images")
    parser.add_argument("private", nargs="?", default=PRIVATE)
    parser.add_argument("public", nargs="?", default=PUBLIC)
    parser.add_argument("--attacks", default=",".join(white_box()))
    parser.add_argument("--classes", default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path)
    given = parser.parse_args()
    digits = given.what == "digits"
    if (given.model is None) != digits:
        parser.error("expected a model, private and public images after `faces`, and nothing after `digits`")
    special = UPRIGHT if digits else MIRRORED
    given.out.mkdir(parents=True, exist_ok=True)
    report = run_attack(
        Plan(
            model=ModelPlan(ref=str(digit_model(given.out.parent / "digits.safetensors") if digits else given.model)),
            private=given.private,
            public=given.public,
            size=32 if digits else None,
            attacks=tuple(AttackPlan(name=n, settings=special.get(n, {})) for n in given.attacks.split(",")),
            classes=given.classes,
            profile="quick",
            seeds=given.seeds,
            prior_settings={} if digits else FACES,
            precision=given.precision,
            out=given.out,
            cache=given.cache_dir,
        ),
        Lines(lambda line: print(line, file=sys.stderr, flush=True)),
    )
    print("\n".join(rows(report, seconds_of(given.out))))


if __name__ == "__main__":
    main()
