"""`gate`, `report`, `compare`: what is done with saved results. None of them loads torch."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mi_audit.audit.settings import rules_of
from mi_audit.audit.settings_gate import decision_of, waivers_of
from mi_audit.cli.charted import report_charted
from mi_audit.cli.finish import known_format, parse_reports, render, show, summarise, verdict_code, write, write_all
from mi_audit.cli.options import ExitZero, Given, Json, Reports, takes_settings
from mi_audit.cli.session import current, emit, say
from mi_audit.core.errors import ConfigError, NothingToAudit
from mi_audit.core.report import AuditReport, Comparison

FORMATS = "One of html, markdown, json, text, junit, sarif, github, model-card."
Run = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, its JSON file, or runs/latest.")]


@takes_settings("gate", "baseline", "decision")
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
    --policy audit-v1 judges the share of people that were exposed, by an exact bound.
    Of a sweep the run of its recommended value is judged.

    [bold]Exit codes[/bold]  0 pass, 1 fail, 2 usage, 3 nothing to judge, 4 a job failed, 5 inconclusive

    [bold]Examples[/bold]

      mi-audit gate runs/latest --fail-on 'attack_acc1 > 0.10'
      mi-audit gate runs/latest --policy audit-v1 --threshold 0.10
      mi-audit gate runs/latest --baseline main/result.json --max-regression 0.02
    """
    del as_json
    wanted = parse_reports(reports)
    resolved = given.resolve()
    settings = resolved.settings
    from mi_audit.audit.gate import check_baseline, judge, saved_decision, saved_rules
    from mi_audit.store.results import read_result

    result, folder = _to_judge(run)
    baseline = read_result(settings.baseline.file) if settings.baseline.file else None
    decision = decision_of(settings.decision, resolved.origins)
    rules, asked = rules_of(settings), ("decision", "policy") in resolved.origins
    if not rules and not asked and settings.baseline.max_regression is None:
        rules, decision = saved_rules(result.verdict), saved_decision(result.verdict)
    check_baseline(result, baseline, decision)
    waivers = waivers_of(settings.waivers, resolved.origins.get(("waivers",), ""))
    verdict = judge(result, rules, baseline, settings.baseline.max_regression, decision, waivers)
    if verdict is None:
        raise ConfigError(
            "expected at least one rule, got none; give --fail-on 'attack_acc1 > 0.10' or --policy audit-v1"
        )
    judged = replace(result, verdict=verdict)
    write_all(judged, wanted, folder)
    show(current(), judged, folder)
    raise typer.Exit(verdict_code(judged, exit_zero))


def report(
    run: Run,
    kind: Annotated[str, typer.Option("--format", "-f", metavar="FORMAT", help=FORMATS)] = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here. [dim]\\[standard output][/dim]")
    ] = None,
    images: Annotated[bool, typer.Option("--images/--no-images", metavar="", help="Show pictures in HTML.")] = True,
    names: Annotated[bool, typer.Option("--names/--no-names", metavar="", help="Name classes in HTML.")] = True,
) -> None:
    """Turn a saved run, sweep or Fisher profile into a report; starts at once.

    [bold]Examples[/bold]

      mi-audit report runs/latest
      mi-audit report runs/latest -f html -o report.html
      mi-audit report runs/latest -f markdown
      mi-audit report runs/latest -f sarif -o mi.sarif
    """
    session = current()
    wanted = known_format(kind)
    from mi_audit.store.saved import read_saved

    result, folder = read_saved(_result_file(run)), _folder(run)
    if not isinstance(result, AuditReport | Comparison):
        report_charted(session, result, wanted, output)
        return
    if output is not None:
        write(output, render(result, wanted, folder, images=images, names=names))
        if session.verbosity >= 0:
            say(str(output), "report")
    elif wanted == "text":
        show(session, result, folder)
    else:
        emit(render(result, wanted, folder, images=images, names=names))
        if wanted == "github":
            summarise(result)


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
    write_all(result, wanted, None)
    show(current(), result)


def _to_judge(run: str) -> tuple[AuditReport | Comparison, Path]:
    """A saved run and its folder; of a sweep the run of its recommended value.

    Raises:
        NothingToAudit: The sweep recommends none.
    """
    from mi_audit.store.results import read_result, read_sweep
    from mi_audit.store.saved import kind_of

    file = _result_file(run)
    if kind_of(file) != "sweep":
        return read_result(file), _folder(run)
    found, folder = read_sweep(file), _folder(run)
    runs = {point.value: folder / point.folder for point in found.points}
    chosen = runs.get(found.advice.value or "")
    if chosen is None:
        raise NothingToAudit(
            f"expected a sweep that recommends a value, got {folder}, which says: {found.advice.why.rstrip('.')}; "
            f"judge one of its runs, such as {next(iter(runs.values()), 'none')}"
        )
    if current().verbosity >= 0:
        say(f"{chosen}, the run of the recommended value {found.parameter} {found.advice.value}", "judging")
    return read_result(chosen), chosen


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
