"""Every defense against the same attacks, beside one undefended twin, in two Markdown tables.

    python examples/compare_defenses.py digits --out runs/defend-digits
    python examples/compare_defenses.py faces faces/private faces/public --classes random:10 --out runs/defend-faces

One pair of models per seed. The second table repeats the attacks on the same models with every gradient averaged over
random views of the image, the adaptive attack that is published to undo several defenses. Run it again after an
interrupt: what is finished is kept.

    python examples/compare_defenses.py digits --sweep freeze=0%,40%,60%,80%,90% --out runs/freeze-digits

does the same for the freeze points of TL-DMI, and sets the Fisher information of the undefended twin beside them.
`--figures FOLDER` draws both kinds of tables as SVG.
"""

import argparse
import io
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mi_audit.audit.fisher import run_fisher
from mi_audit.audit.plan import COMBINATIONS, AttackPlan, DefendPlan, FisherPlan, ModelPlan, Plan
from mi_audit.audit.sweep import run_sweep
from mi_audit.cli.console import Lines
from mi_audit.core.fisher import FisherReport
from mi_audit.core.report import AttackResult, Comparison, Quantity
from mi_audit.core.sweep import Sweep
from mi_audit.report import fisher
from mi_audit.report import sweep as curve
from mi_audit.store.results import read_result
from mi_audit.store.runs import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHODS = (
    "tldmi", "rolss", "ssf", "tts", "loft", "ca", "mid", "bido", "negls", "midre", "trap-mid", "atat", "dp-sgd",
    "calor", "tldmi+bido", "tldmi+midre", "rolss+bido",
)  # fmt: skip
UPRIGHT: Mapping[str, dict[str, object]] = {  # no digit is mirrored
    name: {"flips": False} for name in ("ppa", "ppdg-mi", "if-gmi")
}
FACES: dict[str, dict[str, object]] = {"gmi-gan": {"flips": True}, "stylegan2": {"flips": True}}
SETTINGS: Mapping[str, dict[str, object]] = {  # at its published rate, CA moves nothing in networks as small as these
    "atat": {"accept_fragility": True},
    "ca": {"lr": 0.05},
    "dp-sgd": {"secret": False},  # a table that can be made again
}
DIGITS: Mapping[str, dict[str, object]] = {  # of five classes
    "loft": {"rank": 3},
    "trap-mid": {"augmentation": "shift"},
}
VERIFIER_EPOCHS = 25  # it learns from the public pictures, however few the private ones are
SHOWN = ("attack_acc1", "exposure", "knn_l2sq_min")
DISTANCES = {"fid": "FID", "fid_evaluator": "FID, evaluator features"}  # of sets; which of them depends on the machine


def planned(given: argparse.Namespace, views: int) -> Plan:
    """The sweep over all methods, or over freeze points, with gradients averaged over `views` views."""
    digits = given.what == "digits"
    names = given.attacks.split(",")
    settings = {**SETTINGS, **(DIGITS if digits else {})}
    for part in parts_of(given):
        if own := said_of(part, given.set):
            settings[part] = settings.get(part, {}) | own
    methods = DefendPlan(sweep=f"method={given.method}", settings=settings)
    defend = DefendPlan(method="tldmi", sweep=given.sweep) if given.sweep else methods
    return Plan(
        model=ModelPlan(ref=given.arch),
        private=given.private,
        public=given.public,
        size=32 if digits else None,
        attacks=tuple(AttackPlan(name=name, settings=settings_of(name, digits, given.set)) for name in names),
        classes=given.classes,
        profile="quick",
        seeds=given.seeds,
        views=views,
        prior_settings={} if digits else FACES,
        precision=given.precision,
        evaluator_epochs=given.evaluator_epochs,
        verifier_epochs=VERIFIER_EPOCHS,
        out=given.out / f"{'curve-' if given.sweep else ''}views-{views}",
        cache=given.cache_dir,
        defend=replace(defend, epochs=given.epochs, batch_size=given.train_batch_size),
    )


def settings_of(attack: str, digits: bool, given: Iterable[str]) -> Mapping[str, object]:
    """What differs from the profile: no mirrored digits, and what `given` says, such as `gmi.steps=150`."""
    return (UPRIGHT.get(attack, {}) if digits else {}) | said_of(attack, given)


def said_of(name: str, given: Iterable[str]) -> dict[str, object]:
    """Of `gmi.steps=150` and the like what is said of `name`."""
    own = (one.removeprefix(f"{name}.").partition("=") for one in given if one.startswith(f"{name}."))
    return {key: json.loads(value) for key, _, value in own}


def parts_of(given: argparse.Namespace) -> list[str]:
    """The defenses that methods are made of, whose settings are free."""
    named = [] if given.sweep else re.split(r"[,+]", given.method)
    return sorted({part for name in named for part in COMBINATIONS.get(name, (name,))})


def share_models(source: Path, target: Path) -> None:
    """Give the runs below `target` the models of those below `source`; a run trains anew what is not what it needs."""
    RunFolder(target).close()  # or the sweep would find files in a folder that is none of its own
    for folder in sorted(path.parent.name for path in source.glob("*/models")):
        RunFolder(target / folder).close()
        shutil.copytree(source / folder / "models", target / folder / "models", dirs_exist_ok=True)


def share(found: Quantity | None, *, signed: bool = False) -> str:
    """`95.0 % [92.0, 98.0]`, or a distance in its own unit."""
    if found is None or found.value is None:
        return "-"
    scale = 100 if found.unit == "share" else 1
    sign = "+" if signed else ""
    low_and_high = (found.interval.low, found.interval.high) if found.interval else ()
    value, *ends = (round(scale * number, 9) + 0.0 for number in (found.value, *low_and_high))  # sums of rounding are 0
    return f"{value:{sign}.3g}" + (f" [{ends[0]:.3g}, {ends[1]:.3g}]" if ends else "")


def cells_of(attack: AttackResult) -> list[str]:
    """What was measured of one attack, in the order of the table."""
    return [share(attack.measurement(name)) for name in (*SHOWN, distance_of(attack))]


def distance_of(attack: AttackResult) -> str:
    """The distance of sets that was measured: by Inception where its weights are at hand, else by the evaluator."""
    return next((name for name in DISTANCES if attack.measurement(name)), "fid")


def rows(results: Mapping[str, Comparison], what: str = "defense") -> Iterator[str]:
    """One line per attack and method, or freeze point; the twin first, then changes against it."""
    first = next(iter(results.values()))
    distance = DISTANCES[distance_of(first.before.attacks[0])]
    yield f"| {what} | attack | accuracy, % | top-1, % | change of top-1 | exposed, % | KNN distance | {distance} |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in first.before.attacks:
        if one.role == "attack":
            cells = cells_of(one)
            yield f"| none | {one.name} | {accuracies(first, after=False)} | {cells[0]} | | {' | '.join(cells[1:])} |"
    for method, result in results.items():
        changed = {change.attack: change.difference for change in result.changes if change.name == "attack_acc1"}
        for one in result.after.attacks:
            if one.role == "attack":
                cells = cells_of(one)
                change = share(changed.get(one.name), signed=True)
                own = accuracies(result, after=True)
                yield f"| {method} | {one.name} | {own} | {cells[0]} | {change} | {' | '.join(cells[1:])} |"


def accuracies(result: Comparison, *, after: bool) -> str:
    """Mean test accuracy over the seeds, and the paired change against the twin."""
    models = (result.after if after else result.before).targets
    mean = sum(model.accuracy.value or 0.0 for model in models) / len(models)
    change = next((c.difference for c in result.changes if c.attack == "utility"), None)
    return f"{100 * mean:.1f} ({share(change, signed=True)})" if after else f"{100 * mean:.1f}"


def profile(report: FisherReport) -> Iterator[str]:
    """One line per unit of the network: its share of the Fisher information for either task."""
    yield "| unit | classification, % | inversion, % | inversion / classification | freeze up to here |"
    yield "|---|---|---|---|---|"
    shown, depth = report.profiles[0].values, len(report.units) - 1
    for place, (unit, one) in enumerate(zip(report.units, shown, strict=True), 1):
        ratio = "-" if one.ratio is None else f"{one.ratio:.2f}"
        ends = f" [{one.ratio_interval.low:.2f}, {one.ratio_interval.high:.2f}]" if one.ratio_interval else ""
        cut = f"{100 * place / depth:.0f}%" if place <= depth else "head"
        shares = f"{100 * one.share_cls:.1f} | {100 * one.share_mi:.1f}"
        yield f"| `{unit.name}` | {shares} | {ratio}{ends} | {cut} |"


def fisher_of(plan: Plan, sweep: Sweep) -> FisherReport:
    """The profile of the first undefended twin of a sweep, with reconstructions by GMI and the moments on their way."""
    assert plan.out is not None
    twin = plan.out / sweep.points[0].folder / "models" / f"undefended-s{plan.seed}.safetensors"
    gmi = tuple(attack for attack in plan.attacks if attack.name == "gmi") or (AttackPlan(name="gmi"),)
    asked = replace(
        plan, model=ModelPlan(ref=str(twin)), attacks=gmi, views=1, seeds=1, defend=DefendPlan(),
        out=plan.out.with_name("fisher"),
    )  # fmt: skip
    return run_fisher(FisherPlan(plan=asked))


def changes(results: Mapping[str, Comparison]) -> bytes:
    """An SVG of the changes of top-1 with their intervals: one panel per attack, one line per defense."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [one.name for one in next(iter(results.values())).after.attacks if one.role == "attack"]
    with rc_context({"svg.hashsalt": "mi-audit", "svg.fonttype": "path", "font.size": 9}):
        page = Figure(figsize=(1.4 + 2.4 * len(names), 0.8 + 0.24 * len(results)), layout="constrained")
        panels = page.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
        for panel, attack in zip(panels, names, strict=True):
            panel.axvline(0, color="#98a1a8", linewidth=0.8)
            for place, result in enumerate(results.values()):
                _line(panel, place, result, attack)
            panel.set(title=attack, ylim=(len(results) - 0.5, -0.5))
            panel.set_yticks(range(len(results)), list(results))
            panel.tick_params(left=False)
            panel.spines[["top", "right", "left"]].set_visible(False)
        page.supxlabel("change of top-1 against the undefended twin, points (95 %)", fontsize=9)
        drawn = io.BytesIO()
        page.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()


def _line(panel: "Axes", place: int, result: Comparison, attack: str) -> None:
    """A dot and its interval, coloured when the interval leaves zero."""
    found = [c.difference for c in result.changes if c.attack == attack and c.name == "attack_acc1"]
    for change in found:
        if change.value is None or change.interval is None:
            continue
        low, high = 100 * change.interval.low, 100 * change.interval.high
        colour = "#20714a" if high < 0 else "#b4522d" if low > 0 else "#1f5a80"
        panel.plot([low, high], [place, place], color=colour, linewidth=1.4)
        panel.plot(100 * change.value, place, "o", color=colour, markersize=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "faces"), help="faces may be mirrored, digits may not")
    parser.add_argument("private", nargs="?", default="digits:0-4", help="for faces: private and public images")
    parser.add_argument("public", nargs="?", default="digits:5-9")
    parser.add_argument("--arch", default="built-in:resnet18-small", help="its architecture is trained anew")
    parser.add_argument("--method", default=",".join(METHODS))
    parser.add_argument("--sweep", help="freeze points of TL-DMI in place of methods, such as freeze=0%%,40%%,80%%")
    parser.add_argument("--attacks", default="gmi,ppa,if-gmi")
    parser.add_argument("--set", action="append", default=[], help="such as gmi.steps=150 or loft.rank=10; repeatable")
    parser.add_argument("--views", default="1,20", help="numbers of views to average gradients over; 1 is none")
    parser.add_argument("--classes", default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--train-batch-size", type=int, help="few pictures need smaller ones")
    parser.add_argument("--evaluator-epochs", type=int, help="few pictures need more of them")
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--figures", type=Path, help="folder to draw the tables in")
    given = parser.parse_args()
    for one in given.set:
        known = [*given.attacks.split(","), *parts_of(given)]
        if not re.fullmatch(rf"({'|'.join(map(re.escape, known))})\.\w+=.+", one):
            parser.error(f"expected --set NAME.KEY=VALUE with one of {', '.join(known)}, got {one!r}")
    trained: Path | None = None
    for views in map(int, given.views.split(",")):
        plan = planned(given, views)
        if trained is not None and plan.out is not None:
            share_models(trained, plan.out)
        sweep = run_sweep(plan, Lines(lambda line: print(line, file=sys.stderr, flush=True)))
        assert plan.out is not None
        trained = trained or plan.out
        results = {point.value: read_result(plan.out / point.folder) for point in sweep.points}
        print(f"\n{'plain' if views == 1 else f'{views} views per gradient'}\n")
        compared = {name: one for name, one in results.items() if isinstance(one, Comparison)}
        print("\n".join(rows(compared, "freeze" if given.sweep else "defense")))
        for failure in sweep.failures:
            print(f"\n{failure.value} failed: {failure.message}")
        if given.figures:
            given.figures.mkdir(parents=True, exist_ok=True)
            drawing = curve.picture(sweep, "svg") if given.sweep else changes(compared)
            (given.figures / f"{'curve' if given.sweep else 'changes'}-{views}.svg").write_bytes(drawing)
    if given.sweep:
        print("\nFisher information of the undefended twin\n")
        report = fisher_of(plan, sweep)
        print("\n".join(profile(report)))
        if given.figures:
            (given.figures / "fisher.svg").write_bytes(fisher.picture(report, "svg"))


if __name__ == "__main__":
    main()
