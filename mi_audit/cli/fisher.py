"""`fisher`: where in a network the private data matter, and where inversion does."""

import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import typer

from mi_audit.audit.plan import AttackPlan, FisherPlan
from mi_audit.audit.settings import plan_from_json, plan_of
from mi_audit.cli.attack import known_attacks
from mi_audit.cli.charted import deliver_charted
from mi_audit.cli.console import watching
from mi_audit.cli.finish import claim
from mi_audit.cli.options import AllowPickle, Fresh, Given, Json, takes_settings
from mi_audit.cli.session import Session, current
from mi_audit.core.errors import ConfigError

KEYS = (
    "ref", "arch", "num_classes", "size", "channels", "mean", "std", "labels", "class_order",
    "private", "public", "convert_color", "attacks", "classes", "profile", "prior_profile", "seed",
    "device", "batch_size", "images", "out", "cache",
)  # fmt: skip
QUICK, USUAL = 400, 2000  # samples by profile
MOMENTS, PEOPLE, EVERYBODY = 10, 20, 10**9
CHEAP, WITHOUT_PRIOR = "gmi", "deep-inversion"  # attacks when none is named


@takes_settings("model", "data", "run", only=KEYS)
def fisher(
    given: Given,
    reconstructions: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Take the reconstructions of this run of the same model, such as runs/latest, instead of attacking.",
            rich_help_panel="Data",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=2,
            metavar="N",
            help="Most validation images, and most reconstructions. [dim]\\[400; 2000 in other profiles][/dim]",
            rich_help_panel="Data",
        ),
    ] = None,
    moments: Annotated[
        int,
        typer.Option(
            "--moments",
            min=0,
            metavar="N",
            help="Pictures to keep from the way of every search, besides its end. [dim]\\[10][/dim]",
            rich_help_panel="Attack",
            show_default=False,
        ),
    ] = MOMENTS,
    as_json: Json = False,
    fresh: Fresh = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Measure layer by layer what matters for classification and what for inversion, and suggest a freeze point.

    Classification is measured on private validation images, inversion on reconstructions:
    with --run those of an earlier run, else new ones by a quick attack on 20 people. Without
    --public that attack has no image prior, and the profile is marked weak. Exits with 0 when
    there is a profile, whatever it says.

    [bold]Examples[/bold]

      mi-audit fisher model.safetensors --private data/private --public data/public
      mi-audit fisher model.safetensors --private data/private --run runs/latest
      mi-audit fisher model.safetensors --private data/private --classes random:40 --samples 1000 --json
    """
    del as_json
    _run(current(), _wanted(given, reconstructions, samples, moments, allow_pickle=allow_pickle, fresh=fresh))


def go_on(saved: Mapping[str, object], path: Path) -> None:
    """Resume the profile that `plan.json` describes.

    Raises:
        ConfigError: It is of another version.
    """
    about, plan = saved.get("fisher"), saved.get("plan")
    known = {each.name for each in fields(FisherPlan)} - {"plan"}
    if not isinstance(about, dict) or not isinstance(plan, dict) or set(about) != known:
        raise ConfigError(f"expected a plan of a profile of this version in {path}, got another; repeat the command")
    from pydantic import TypeAdapter, ValidationError

    whole = {**about, "plan": replace(plan_from_json(plan), out=path)}
    try:
        wanted = TypeAdapter(FisherPlan).validate_python(whole)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"expected a plan of a profile in {path}, got {first['loc'][0]}: {first['msg']}; repeat the command"
        ) from error
    _run(current(), wanted)


def _wanted(
    given: Given, run: str | None, samples: int | None, moments: int, *, allow_pickle: bool, fresh: bool
) -> FisherPlan:
    resolved = given.resolve()
    said = resolved.values
    plan = plan_of(resolved, "fisher", known_attacks, allow_pickle=allow_pickle, fresh=fresh)
    if ("run", "profile") not in said:
        plan = replace(plan, profile="quick")
    if ("run", "attacks") not in said:
        own = resolved.settings.attacks
        name = CHEAP if plan.public else WITHOUT_PRIOR
        plan = replace(plan, attacks=() if run else (AttackPlan(name=name, settings=own.get(name, {})),))
    count = samples or (QUICK if plan.profile == "quick" else USUAL)
    asked = {"--run": run, "--samples": samples, "--moments": None if moments == MOMENTS else moments}
    words = [word for flag, value in asked.items() if value is not None for word in (flag, str(value))]
    plan = replace(plan, command=" ".join([plan.command, *map(shlex.quote, words)]))
    people = EVERYBODY if ("run", "classes") in said else PEOPLE
    return FisherPlan(plan=plan, run=run, samples=count, moments=moments, people=people)


def _run(session: Session, wanted: FisherPlan) -> None:
    from mi_audit.audit.fisher import fisher_folder, run_fisher

    session.run = claim(fisher_folder(wanted))
    with watching(session) as progress:
        found = run_fisher(wanted, progress)
    deliver_charted(session, found, session.run)
