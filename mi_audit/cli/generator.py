"""`generator`: priors on their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from mi_audit.audit.plan import Plan
from mi_audit.audit.settings import plan_of
from mi_audit.cli.attack import known_attacks
from mi_audit.cli.console import watching
from mi_audit.cli.options import Given, Json, takes_settings
from mi_audit.cli.session import Session, current, emit_json, stdout

generator = typer.Typer(
    no_args_is_help=True, help="Train, describe and sample the attacker's priors.", rich_markup_mode="rich"
)
Name = Annotated[str, typer.Option("--prior", metavar="NAME", help="Which prior; see `mi-audit list priors`.")]
KEYS = ("public", "size", "convert_color", "profile", "prior_profile", "device", "cache", "seed")


@generator.command("train")
@takes_settings("data", "run", only=KEYS)
def train(given: Given, name: Name = "gmi-gan", as_json: Json = False) -> None:
    """Train a prior on public images ahead of an audit; `mi-audit attack` then finds it in the cache.

    [bold]Examples[/bold]

      mi-audit generator train --public data/public --profile quick
    """
    del as_json
    session = current()
    plan = _plan(given)
    from mi_audit.audit.generators import train_prior

    with watching(session) as progress:
        _show(session, train_prior(plan, name, progress))


@generator.command("info")
@takes_settings("data", "run", only=KEYS)
def describe(given: Given, name: Name = "gmi-gan", as_json: Json = False) -> None:
    """Show what would be trained on these images, and whether it is in the cache.

    [bold]Examples[/bold]

      mi-audit generator info --public data/public
    """
    del as_json
    plan = _plan(given)
    from mi_audit.audit.generators import describe_prior

    _show(current(), describe_prior(plan, name))


@generator.command("sample")
@takes_settings("data", "run", only=KEYS)
def sample(
    given: Given,
    name: Name = "gmi-gan",
    count: Annotated[int, typer.Option("--count", min=1, help="Number of samples.")] = 64,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="PNG to write.")] = Path("samples.png"),
    as_json: Json = False,
) -> None:
    """Draw random samples of a trained prior into one picture.

    [bold]Examples[/bold]

      mi-audit generator sample --public data/public --count 64 -o samples.png
    """
    del as_json
    plan = _plan(given)
    from mi_audit.audit.generators import sample_prior

    _show(current(), sample_prior(plan, name, count, output))


def _plan(given: Given) -> Plan:
    return plan_of(given.resolve(), "generator", known_attacks)


def _show(session: Session, facts: Mapping[str, object]) -> None:
    if session.json:
        emit_json(dict(facts))
        return
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    for key, value in facts.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        table.add_row(key, Text(text))
    stdout().print(table)
