"""`gate`, `report`, `compare`: what is done with saved results. None of them loads torch."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mi_audit.audit.settings import rules_of
from mi_audit.cli.finish import known_format, parse_reports, render, show, verdict_code, write
from mi_audit.cli.options import ExitZero, Given, Json, Reports, takes_settings
from mi_audit.cli.session import current, emit, say
from mi_audit.core.errors import ConfigError
from mi_audit.core.report import AuditReport

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, result.json, or runs/latest.")]


@takes_settings("gate", "baseline")
def gate(
    given: Given,
    run: Run,
    as_json: Json = False,
    reports: Reports = None,
    exit_zero: ExitZero = False,
) -> None:
    """Judge a saved run by the rules of today; starts at once.

    A rule is the condition to fail on. It fails when the whole 95 % interval meets the
    condition, passes when none of it does, and is inconclusive otherwise. Rules come from
    --fail-on, else from [bold]mi-audit.toml[/bold], else they are those the run was judged by.

    [bold]Exit codes[/bold]  0 pass, 1 fail, 2 usage, 3 nothing to judge, 4 a job failed, 5 inconclusive

    [bold]Examples[/bold]

      mi-audit gate runs/latest --fail-on 'attack_acc1 > 0.10'
      mi-audit gate runs/latest --baseline main/result.json --max-regression 0.02
    """
    del as_json
    wanted = parse_reports(reports)
    settings = given.resolve().settings
    from mi_audit.audit.gate import judge
    from mi_audit.audit.plan import RulePlan
    from mi_audit.store.results import read_result

    result, folder = read_result(_result_file(run)), _folder(run)
    saved = tuple(RulePlan(id=old.id, when=old.when) for old in result.verdict.rules) if result.verdict else ()
    baseline = read_result(settings.baseline.file) if settings.baseline.file else None
    rules = rules_of(settings) or (() if settings.baseline.max_regression is not None else saved)
    verdict = judge(result, rules, baseline, settings.baseline.max_regression)
    if verdict is None:
        raise ConfigError("expected at least one rule, got none; give --fail-on 'attack_acc1 > 0.10'")
    judged = replace(result, verdict=verdict)
    for kind, path in wanted:
        write(path, render(judged, kind, folder))
    show(current(), judged, folder)
    raise typer.Exit(verdict_code(judged, exit_zero))


def report(
    run: Run,
    kind: Annotated[str, typer.Option("--format", "-f", metavar="html|markdown|json|text", help="Form.")] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here. [dim]\\[standard output][/dim]")
    ] = None,
    images: Annotated[bool, typer.Option("--images/--no-images", metavar="", help="Show pictures in HTML.")] = True,
) -> None:
    """Turn a saved run into a report; starts at once.

    [bold]Examples[/bold]

      mi-audit report runs/latest
      mi-audit report runs/latest -f html -o report.html
      mi-audit report runs/latest -f markdown
    """
    session = current()
    wanted = known_format(kind)
    from mi_audit.store.results import read_result

    result, folder = read_result(_result_file(run)), _folder(run)
    if output is not None:
        write(output, render(result, wanted, folder, images=images))
        if session.verbosity >= 0:
            say(str(output), "report")
    elif wanted == "text":
        show(session, result, folder)
    else:
        emit(render(result, wanted, folder, images=images))


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="Run before; of a defense run, its defended model.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Run after.")],
    as_json: Json = False,
    reports: Reports = None,
) -> None:
    """Compare two runs on the same data and classes: paired differences with intervals.

    [bold]Examples[/bold]

      mi-audit compare runs/plain runs/defended
      mi-audit compare old/result.json new/result.json --json
    """
    del as_json
    wanted = parse_reports(reports)
    from mi_audit.audit.compare import compare as compare_audits

    result = compare_audits(_audit(before), _audit(after), f"mi-audit compare {before} {after}")
    for kind, path in wanted:
        write(path, render(result, kind, None))
    show(current(), result)


def _audit(run: str) -> AuditReport:
    from mi_audit.store.results import read_result

    result = read_result(_result_file(run))
    return result if isinstance(result, AuditReport) else result.after


def _result_file(run: str) -> Path:
    """The file to read: a file as it is given, else `result.json` of the run folder."""
    from mi_audit.store.latest import find_run

    return Path(run) if Path(run).is_file() or Path(run).name != "latest" else find_run(run)


def _folder(run: str) -> Path:
    from mi_audit.store.latest import find_run

    return find_run(run)
