"""`attack`, `defend`, `demo`, `resume`: the commands that compute."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mi_audit.audit.plan import Plan
from mi_audit.audit.settings import plan_from_json, plan_of
from mi_audit.cli.console import duration, watching
from mi_audit.cli.finish import Reported, claim, deliver, parse_reports
from mi_audit.cli.options import AllowPickle, DryRun, ExitZero, Fresh, Given, Json, Reports, takes_settings
from mi_audit.cli.session import Session, current, emit_json, stdout
from mi_audit.cli.sweep import show_sweep_estimate, sweep
from mi_audit.core.errors import ConfigError


@takes_settings("model", "data", "run", "gate", "baseline", "decision")
def attack(
    given: Given,
    as_json: Json = False,
    dry_run: DryRun = False,
    reports: Reports = None,
    exit_zero: ExitZero = False,
    fresh: Fresh = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Attack a classifier, measure what leaked, and judge it.

    Every option can also stand in [bold]mi-audit.toml[/bold], or as [bold]MI_AUDIT_OPTION[/bold] in the environment.
    Typing the same command again resumes an interrupted run.

    [bold]Examples[/bold]

      mi-audit attack model.safetensors --private data/private --public data/public
      mi-audit attack model.safetensors --attacks ppa --classes random:50 --profile quick
      mi-audit attack weights.pt --arch timm:resnet18 --fail-on 'attack_acc1 > 0.10'
      mi-audit attack model.safetensors --dry-run
    """
    del as_json
    wanted = parse_reports(reports)
    plan = planned(given, "attack", allow_pickle=allow_pickle, fresh=fresh)
    if dry_run:
        show_estimate(current(), plan, "attack")
        return
    run(current(), plan, "attack", wanted, exit_zero=exit_zero)


@takes_settings("model", "data", "run", "defend", "gate", "baseline", "decision")
def defend(
    given: Given,
    as_json: Json = False,
    dry_run: DryRun = False,
    reports: Reports = None,
    exit_zero: ExitZero = False,
    fresh: Fresh = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Retrain a classifier with a defense, attack it before and after, and compare.

    An undefended twin is trained with the same recipe, data and seeds, so that the effect
    is the defense's alone. The defended weights are saved so that [bold]mi-audit attack[/bold]
    loads them without options.

    [bold]Examples[/bold]

      mi-audit defend model.safetensors --private data/private --public data/public --freeze 80%
      mi-audit defend model.safetensors --method tldmi+bido --set bido.lambda_x=0.1
      mi-audit defend model.safetensors --pretrained timm:resnet18.a1_in1k --save defended.safetensors
      mi-audit defend model.safetensors --freeze auto:2 --views 20
      mi-audit defend model.safetensors --seeds 3 --fail-on 'attack_acc1 > 0.10'
      mi-audit defend model.safetensors --sweep freeze=0%,40%,60%,80%,90%
    """
    del as_json
    wanted = parse_reports(reports)
    plan = planned(given, "defend", allow_pickle=allow_pickle, fresh=fresh)
    if dry_run:
        show_estimate(current(), plan, "defend")
        return
    run(current(), plan, "defend", wanted, exit_zero=exit_zero)


def demo(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PATH", help="Run folder. [dim]\\[runs/demo][/dim]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="First of three seeds.")] = 0,
    cache: Annotated[
        Path | None, typer.Option("--cache-dir", metavar="PATH", help="Folder of trained evaluators and priors.")
    ] = None,
    as_json: Json = False,
    reports: Reports = None,
) -> None:
    """See it work on handwritten digits: offline, in minutes on a laptop.

    Digits 0-4 are private, 5-9 are what the attacker knows, as the field does with MNIST.
    Everything is trained on the spot. The result may well be that the defense makes no
    significant difference.

    [bold]Examples[/bold]

      mi-audit demo
      mi-audit demo --out runs/first --seed 7
    """
    del as_json
    wanted = parse_reports(reports)
    session = current()
    from mi_audit.audit.demo import run_demo

    session.run = claim(out or Path("runs") / "demo")
    with watching(session) as progress:
        result = run_demo(out, seed, cache, progress)
    deliver(session, result, session.run, wanted)


def resume(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, such as runs/latest.")],
    as_json: Json = False,
    reports: Reports = None,
    exit_zero: ExitZero = False,
) -> None:
    """Go on with an interrupted run; the same as typing its command again.

    [bold]Examples[/bold]

      mi-audit resume runs/latest
    """
    del as_json
    wanted = parse_reports(reports)
    from mi_audit.store.latest import find_run
    from mi_audit.store.runs import RunFolder

    path = find_run(folder)
    with RunFolder(path) as kept:
        saved = kept.read_plan()
    kind, settings = saved.get("kind"), saved.get("plan")
    if kind == "fisher":
        from mi_audit.cli.fisher import go_on

        if wanted or exit_zero:
            raise ConfigError(
                f"expected neither --report nor --exit-zero for the profile in {path}, got one; leave it out "
                "and write the profile with `mi-audit report` once it is there"
            )
        go_on(saved, path)
        return
    if kind not in ("attack", "defend") or not isinstance(settings, dict):
        raise ConfigError(f"expected a plan of an attack or a defense in {path}, got {kind!r}; repeat the command")
    plan = replace(plan_from_json(settings), out=path)
    check_gate(plan, str(kind))
    run(current(), plan, str(kind), wanted, exit_zero=exit_zero)


def planned(given: Given, verb: str, *, allow_pickle: bool = False, fresh: bool = False) -> Plan:
    """The plan of a command, with its gate checked now rather than after hours of work."""
    plan = plan_of(given.resolve(), verb, known_attacks, allow_pickle=allow_pickle, fresh=fresh)
    check_gate(plan, verb)
    return plan


def check_gate(plan: Plan, kind: str) -> None:
    """Refuse what could not be judged once all is measured.

    Raises:
        ConfigError: A rule cannot be read, names an unknown metric, or needs a baseline that is not there.
    """
    from mi_audit.audit.asked import check_rules
    from mi_audit.audit.registry import metrics
    from mi_audit.store.results import read_result

    measured = {name for metric in metrics().values() for name in metric.names}
    check_rules(plan.rules, measured, plan.baseline is not None or kind == "defend", plan.max_regression)
    if plan.baseline is not None:
        read_result(plan.baseline)


def known_attacks() -> dict[str, frozenset[str]]:
    """Tags by attack; loads torch."""
    from mi_audit.audit.catalogue import attack_tags

    return dict(attack_tags())


def run(session: Session, plan: Plan, kind: str, reports: Reported, *, exit_zero: bool) -> None:
    """Run a plan under progress bars and deliver the result."""
    if kind == "defend" and plan.defend.sweep is not None:
        sweep(session, plan, reports, exit_zero=exit_zero)
        return
    from mi_audit.audit.attack import run_attack
    from mi_audit.audit.defend import run_defense
    from mi_audit.audit.scene import run_folder_path

    session.run = claim(run_folder_path(plan, kind))
    with watching(session) as progress:
        result = run_defense(plan, progress) if kind == "defend" else run_attack(plan, progress)
    deliver(session, result, session.run, reports, exit_zero=exit_zero, images=plan.images == "local")


def show_estimate(session: Session, plan: Plan, kind: str) -> None:
    """Print what would run, and how long it would take."""
    from mi_audit.audit.estimate import estimate

    if kind == "defend" and plan.defend.sweep is not None:
        show_sweep_estimate(session, plan)
        return
    with watching(session) as progress:
        found = estimate(plan, kind, progress)
    if session.json:
        emit_json({"plan": dict(found.rows), "jobs": found.jobs, "seconds": found.seconds})
        return
    table = Table(title="Plan (nothing was run)", title_justify="left", show_header=False, box=None, padding=(0, 2))
    for row in (*found.rows, ("jobs", str(found.jobs)), ("in all", f"about {duration(found.seconds)}")):
        table.add_row(*row)
    stdout().print(table)
