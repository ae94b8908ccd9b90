"""Every defense against the same attacks, beside one undefended twin, in two Markdown tables.

    python examples/compare_defenses.py digits --out runs/defend-digits
    python examples/compare_defenses.py faces faces/private faces/public --classes random:10 --out runs/defend-faces

One pair of models per seed. The second table repeats the attacks with every gradient averaged over random views of the
image, the adaptive attack that is published to undo several defenses. Run it again after an interrupt: what is finished
is kept.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from mi_audit.audit.plan import AttackPlan, DefendPlan, ModelPlan, Plan
from mi_audit.audit.sweep import run_sweep
from mi_audit.cli.console import Lines
from mi_audit.core.report import Comparison, Quantity
from mi_audit.store.results import read_result

METHODS = (
    "tldmi", "rolss", "ssf", "tts", "loft", "ca", "mid", "bido", "negls", "midre", "trap-mid", "atat", "dp-sgd",
    "calor", "tldmi+bido", "tldmi+midre", "rolss+bido",
)  # fmt: skip
UPRIGHT: dict[str, dict[str, object]] = {  # no digit is mirrored
    name: {"flips": False} for name in ("ppa", "ppdg-mi", "if-gmi")
}
FACES: dict[str, dict[str, object]] = {"gmi-gan": {"flips": True}, "stylegan2": {"flips": True}}
SETTINGS: Mapping[str, object] = {  # at its published rate, CA moves nothing in networks as small as these
    "atat": {"accept_fragility": True},
    "ca": {"lr": 0.05},
    "dp-sgd": {"secret": False},  # the same weights at every number of views
}
DIGITS: Mapping[str, object] = {"loft": {"rank": 3}, "trap-mid": {"augmentation": "shift"}}  # of five classes
VERIFIER_EPOCHS = 25  # it learns from the public pictures, however few the private ones are
SHOWN = ("attack_acc1", "exposure", "knn_l2sq_min", "fid")


def planned(given: argparse.Namespace, views: int) -> Plan:
    """The sweep over all methods, with gradients averaged over `views` views."""
    digits = given.what == "digits"
    names = given.attacks.split(",")
    return Plan(
        model=ModelPlan(ref=given.arch),
        private=given.private,
        public=given.public,
        size=32 if digits else None,
        attacks=tuple(AttackPlan(name=name, settings=UPRIGHT.get(name, {}) if digits else {}) for name in names),
        classes=given.classes,
        profile="quick",
        seeds=given.seeds,
        views=views,
        prior_settings={} if digits else FACES,
        precision=given.precision,
        evaluator_epochs=given.evaluator_epochs,
        verifier_epochs=VERIFIER_EPOCHS,
        out=given.out / f"views-{views}",
        cache=given.cache_dir,
        defend=DefendPlan(
            sweep=f"method={given.method}",
            epochs=given.epochs,
            settings={**SETTINGS, **(DIGITS if digits else {})},
        ),
    )


def share(found: Quantity | None, *, signed: bool = False) -> str:
    """`95.0 % [92.0, 98.0]`, or a distance in its own unit."""
    if found is None or found.value is None:
        return "-"
    scale = 100 if found.unit == "share" else 1
    sign = "+" if signed else ""
    ends = f" [{scale * found.interval.low:.3g}, {scale * found.interval.high:.3g}]" if found.interval else ""
    return f"{scale * found.value:{sign}.3g}{ends}"


def rows(results: Mapping[str, Comparison]) -> Iterator[str]:
    """One line per attack and method; the twin first, then changes against it."""
    yield "| defense | attack | accuracy, % | top-1, % | change of top-1 | exposed, % | KNN distance | FID |"
    yield "|---|---|---|---|---|---|---|---|"
    first = next(iter(results.values()))
    for one in first.before.attacks:
        if one.role == "attack":
            cells = [share(one.measurement(name)) for name in SHOWN]
            yield f"| none | {one.name} | {accuracies(first, after=False)} | {cells[0]} | | {' | '.join(cells[1:])} |"
    for method, result in results.items():
        changed = {change.attack: change.difference for change in result.changes if change.name == "attack_acc1"}
        for one in result.after.attacks:
            if one.role == "attack":
                cells = [share(one.measurement(name)) for name in SHOWN]
                change = share(changed.get(one.name), signed=True)
                own = accuracies(result, after=True)
                yield f"| {method} | {one.name} | {own} | {cells[0]} | {change} | {' | '.join(cells[1:])} |"


def accuracies(result: Comparison, *, after: bool) -> str:
    """Mean test accuracy over the seeds, and the paired change against the twin."""
    models = (result.after if after else result.before).targets
    mean = sum(model.accuracy.value or 0.0 for model in models) / len(models)
    change = next((c.difference for c in result.changes if c.attack == "utility"), None)
    return f"{100 * mean:.1f} ({share(change, signed=True)})" if after else f"{100 * mean:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "faces"), help="faces may be mirrored, digits may not")
    parser.add_argument("private", nargs="?", default="digits:0-4", help="for faces: private and public images")
    parser.add_argument("public", nargs="?", default="digits:5-9")
    parser.add_argument("--arch", default="built-in:resnet18-small", help="its architecture is trained anew")
    parser.add_argument("--method", default=",".join(METHODS))
    parser.add_argument("--attacks", default="gmi,ppa,if-gmi")
    parser.add_argument("--views", default="1,20", help="numbers of views to average gradients over; 1 is none")
    parser.add_argument("--classes", default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--evaluator-epochs", type=int, help="few pictures need more of them")
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path)
    given = parser.parse_args()
    for views in map(int, given.views.split(",")):
        plan = planned(given, views)
        sweep = run_sweep(plan, Lines(lambda line: print(line, file=sys.stderr, flush=True)))
        assert plan.out is not None
        results = {point.value: read_result(plan.out / point.folder) for point in sweep.points}
        print(f"\n{'plain' if views == 1 else f'{views} views per gradient'}\n")
        print("\n".join(rows({name: one for name, one in results.items() if isinstance(one, Comparison)})))
        for failure in sweep.failures:
            print(f"\n{failure.value} failed: {failure.message}")


if __name__ == "__main__":
    main()
