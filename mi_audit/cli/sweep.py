"""The option --sweep of `defend`: run it, show the table, write the plot and the page."""

import typer
from rich.table import Table

from mi_audit.audit.plan import Plan
from mi_audit.cli.charted import check, deliver_charted
from mi_audit.cli.console import duration, watching
from mi_audit.cli.finish import Reported, claim
from mi_audit.cli.session import Session, emit_json, stdout
from mi_audit.core.sweep import Sweep


def sweep(session: Session, plan: Plan, reports: Reported, *, exit_zero: bool) -> None:
    """Run the defense with every value, print the table, write page and plot, and leave with the exit code.

    Raises:
        ConfigError: The grid is wrong, or a report is asked for that says nothing about a sweep.
    """
    for kind, _ in reports:
        check(kind, "sweep")
    from mi_audit.audit.sweep import run_sweep, sweep_folder

    session.run = claim(sweep_folder(plan))
    with watching(session) as progress:
        result = run_sweep(plan, progress)
    deliver_charted(session, result, session.run, reports)
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
