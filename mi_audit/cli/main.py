"""The program `mi-audit`: parse, call one engine function, print, exit. Commands import the engine when they run."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mi_audit import __version__
from mi_audit.cli.attack import attack, defend, demo, resume
from mi_audit.cli.fisher import fisher
from mi_audit.cli.generator import generator
from mi_audit.cli.importing import import_weights
from mi_audit.cli.judge import compare, gate, report
from mi_audit.cli.look import doctor, info, inspect, list_methods
from mi_audit.cli.planning import plan
from mi_audit.cli.session import Boundary, Session, begin, current, emit
from mi_audit.cli.settle import cache, config

# Before the first large tensor: maps in huge pages, which spares a processor most page faults. Read by torch on Linux.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

ANYWHERE = {"-q", "--quiet", "-v", "--verbose", "--no-progress"}
ANYWHERE_WITH_VALUE = {"--log-file"}
EPILOG = (
    "Exit codes: 0 pass · 1 gate failed · 2 usage or settings · 3 nothing could be audited · 4 run failed\n"
    "5 inconclusive · 130 interrupted, resumable. Global options may stand anywhere on the line."
)


class Program(TyperGroup):
    """The group of commands; knows the global options wherever they stand, and is the boundary for errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer keeps its context private
        begin(Session(json="--json" in args))
        return super().parse_args(ctx, hoisted(args))

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        with Boundary(current()):
            return super().invoke(ctx)


def hoisted(args: list[str]) -> list[str]:
    """The same words with the global options in front."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            return [*front, *rest, word, *words]
        if word in ANYWHERE or word.startswith("--log-file="):
            front.append(word)
        elif word in ANYWHERE_WITH_VALUE:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return [*front, *rest]


app = typer.Typer(
    name="mi-audit",
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
)


def _version(wanted: bool) -> bool:
    if wanted:
        emit(f"mi-audit {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version and stop."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Print errors and results only.")] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            metavar="",
            count=True,
            show_default=False,
            help="Print tracebacks and what the libraries say.",
        ),
    ] = 0,
    no_progress: Annotated[
        bool, typer.Option("--no-progress", metavar="", help="Print lines instead of progress bars.")
    ] = False,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", metavar="FILE", help="Append progress and tracebacks to this file.")
    ] = None,
) -> None:
    """Can someone who holds this image classifier rebuild the people it was trained on?

    Attack a model with published model-inversion attacks, measure what leaked,
    retrain it with a published defense, and gate a release.

    [bold]Start here[/bold]

      mi-audit demo                     attack and defend digits, offline, in minutes
      mi-audit attack model.safetensors --private DIR --public DIR
      mi-audit defend model.safetensors --private DIR --public DIR --freeze 80%
      mi-audit gate runs/latest --fail-on 'attack_acc1 > 0.10'
    """
    del version
    session = current()
    session.verbosity = -1 if quiet else verbose
    session.progress = not no_progress
    session.log_file = log_file
    session.start_logging()


RUN, JUDGE, LOOK = "Audit", "Results", "Tools"
app.command(rich_help_panel=RUN)(attack)
app.command(rich_help_panel=RUN)(defend)
app.command(rich_help_panel=RUN)(fisher)
app.command(rich_help_panel=RUN)(resume)
app.command(rich_help_panel=RUN)(demo)
app.command(rich_help_panel=JUDGE)(gate)
app.command(rich_help_panel=JUDGE)(report)
app.command(rich_help_panel=JUDGE)(compare)
app.command(rich_help_panel=JUDGE)(plan)
app.command("list", rich_help_panel=LOOK)(list_methods)
app.command(rich_help_panel=LOOK)(info)
app.command(rich_help_panel=LOOK)(inspect)
app.command(rich_help_panel=LOOK)(doctor)
app.command("import", rich_help_panel=LOOK)(import_weights)
app.add_typer(generator, name="generator", rich_help_panel=LOOK)
app.add_typer(config, name="config", rich_help_panel=LOOK)
app.add_typer(cache, name="cache", rich_help_panel=LOOK)

if __name__ == "__main__":
    app(prog_name="mi-audit")
