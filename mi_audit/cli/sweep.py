"""The option --sweep of `defend`: run it, show the table, write the plot and the page."""

from collections.abc import Callable, Mapping

import typer
from rich.table import Table

from mi_audit.audit.plan import Plan
from mi_audit.cli.console import duration, watching
from mi_audit.cli.finish import STDOUT, Reported, claim, printed, write
from mi_audit.cli.session import Session, emit, emit_json, say, stdout
from mi_audit.core.errors import ConfigError
from mi_audit.core.sweep import Sweep


def sweep(session: Session, plan: Plan, reports: Reported, *, exit_zero: bool) -> None:
    """Run the defense with every value, print the table, write page and plot, and leave with the exit code.

    Raises:
        ConfigError: The grid is wrong, or a report is asked for that says nothing about a sweep.
    """
    _check(reports)
    from mi_audit.audit.sweep import run_sweep, sweep_folder
    from mi_audit.report.sweep import html, picture
    from mi_audit.store.files import write_atomic
    from mi_audit.store.sweeps import SWEEP_FILE

    session.run = claim(sweep_folder(plan))
    with watching(session) as progress:
        result = run_sweep(plan, progress)
    folder = session.run
    write(folder / "report.html", html(result), private=True)
    write_atomic(folder / "sweep.png", picture(result, "png"))
    write_atomic(folder / "sweep.svg", picture(result, "svg"))
    for kind, path in reports:
        text = SWEEP_FORMATS[kind](result)
        if path == STDOUT:
            emit(text)
        else:
            write(path, text)
    show_sweep(session, result)
    if session.verbosity >= 0:
        for label, name in (("report", "report.html"), ("plot", "sweep.png"), ("result", SWEEP_FILE)):
            say(str(folder / name), label)
    raise typer.Exit(exit_code(result, exit_zero))


def exit_code(result: Sweep, exit_zero: bool = False) -> int:
    """4 when a value or a job failed, else the gate's on the recommended value; 5 where a gate has none to judge."""
    from mi_audit.audit.gate import EXIT, RUN_FAILED

    if result.failures or any(point.failed for point in result.points):
        return RUN_FAILED
    verdicts = {point.value: point.verdict for point in result.points}
    if exit_zero or not any(verdicts.values()):
        return 0
    verdict = verdicts.get(result.advice.value or "")
    return EXIT[verdict or "INCONCLUSIVE"]


def show_sweep(session: Session, result: Sweep) -> None:
    """The sweep on standard output: one JSON document, or a table for people."""
    from mi_audit.report.sweep import show

    if session.json:
        emit(_json(result))
    else:
        show(result, stdout())


def show_sweep_estimate(session: Session, plan: Plan) -> None:
    """Print the grid, and the estimate of one value times the number of values."""
    from mi_audit.audit.defend import composition_of
    from mi_audit.audit.estimate import estimate
    from mi_audit.audit.sweep import grid_of, sweep_plans

    grid = grid_of(plan)
    plans = sweep_plans(plan, grid)
    for one in plans:
        composition_of(one)
    with watching(session) as progress:
        found = estimate(plans[0], "defend", progress)
    seconds, count = found.seconds * len(plans), len(plans)
    if session.json:
        values = {"parameter": grid.parameter, "values": list(grid.values)}
        every = {"plan": dict(found.rows), "jobs": found.jobs * count, "seconds": round(seconds, 1)}
        emit_json({"sweep": values, **every, "seconds_per_value": found.seconds})
        return
    table = Table(title="Plan (nothing was run)", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row("sweep", f"{grid.parameter}: {', '.join(grid.values)}")
    for row in found.rows[:-1]:
        table.add_row(*row)
    table.add_row("every value", f"about {duration(found.seconds)}")
    table.add_row(f"{count} values", f"at most about {duration(seconds)}: {_shared(grid.changes_the_twin)}")
    stdout().print(table)


def _shared(changes_the_twin: bool) -> str:
    if changes_the_twin:
        return "the undefended twin is another one for every value"
    return "the undefended twin is trained and attacked once only"


def _check(reports: Reported) -> None:
    for kind, _ in reports:
        if kind not in SWEEP_FORMATS:
            known = ", ".join(SWEEP_FORMATS)
            raise ConfigError(f"expected one of the formats {known} for a sweep, got {kind}; choose one of them")


def _html(result: Sweep) -> str:
    from mi_audit.report.sweep import html

    return html(result)


def _text(result: Sweep) -> str:
    from mi_audit.report.sweep import show

    return printed(lambda console: show(result, console))


def _markdown(result: Sweep) -> str:
    from mi_audit.report.sweep import markdown

    return markdown(result)


def _json(result: Sweep) -> str:
    from mi_audit.store.sweeps import sweep_to_json

    return sweep_to_json(result)


SWEEP_FORMATS: Mapping[str, Callable[[Sweep], str]] = {
    "html": _html, "markdown": _markdown, "text": _text, "json": _json,
}  # fmt: skip
