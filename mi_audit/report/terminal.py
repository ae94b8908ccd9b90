"""The screen at the end of a run: the outcome, one sentence, one table, and where to read on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mi_audit.core.report import AuditReport, Comparison, Quantity
from mi_audit.report import arithmetic, defended, savings, view, wording

WIDTH = 100  # columns
STYLES: Mapping[str, str] = {"good": "green", "bad": "red", "unsure": "yellow", "plain": "default"}
COLUMNS = ("exposure", "attack_acc1", "attack_acc5", "knn_l2sq_min", "fid", "fid_evaluator", "target_acceptance")
WITH_INTERVAL = ("accuracy", "exposure", "attack_acc1", "knn_l2sq_min")  # the others would not fit on the screen
MOST_WARNINGS = 8
MOST_SEARCHES = 8


def show(
    result: AuditReport | Comparison,
    console: Console,
    timing: Mapping[str, Any] | None = None,
    page: Path | None = None,
) -> None:
    """Print `result` on `console`, on at most 100 columns.

    Args:
        result: What to show.
        console: Where to print.
        timing: The content of `timing.json`, for the total time.
        page: The HTML report, to say where it is.
    """
    width = min(WIDTH, console.width)
    for part in _parts(result, timing, page, width):
        console.print(part, width=width, highlight=False)


def _parts(
    result: AuditReport | Comparison, timing: Mapping[str, Any] | None, page: Path | None, width: int
) -> list[Text | Table]:
    tables = _comparison(result) if isinstance(result, Comparison) else _audit(result, width)
    opening = [Text(), _headline(result), *_rules(result), Text()]
    return [*opening, *tables, *_savings(result), *_cautions(result), *_warnings(result), *_ending(timing, page)]


def _headline(result: AuditReport | Comparison) -> Text:
    head = wording.headline(result)
    badge = Text(f" {head.outcome.upper()} ", style=f"bold reverse {STYLES[head.tone]}")
    return Text.assemble(badge, "  ", (head.sentence, "bold"))


def _rules(result: AuditReport | Comparison) -> list[Text]:
    lines = []
    for rule in result.verdict.rules if result.verdict else ():
        name, tone = wording.OUTCOMES[rule.outcome]
        condition = f"{rule.id}: fails on {rule.when}"
        lines.append(Text.assemble("  ", (f"{name:<13}", STYLES[tone]), (condition, "bold"), f"\n  {rule.reason}"))
    return [Text(), *lines] if lines else []


def _grid(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )


def _audit(report: AuditReport, width: int) -> list[Table | Text]:
    """A line per attack and control, and how good the networks are."""
    table = _grid("What the attacks recovered")
    table.add_column("")
    present = [name for name in COLUMNS if any(_measured(a.measurement(name)) for a in report.attacks)]
    full = WITH_INTERVAL if "exposure" not in present else WITH_INTERVAL[: 3 if width >= WIDTH else 2]
    for name in present:
        table.add_column(wording.metric_short(name), justify="right", no_wrap=True)
    for attack in report.attacks:
        cells = [_cell(attack.measurement(name), interval=name in full) for name in present]
        table.add_row(wording.attack_title(attack.name), *cells, style="dim" if attack.role == "control" else "")
    accuracy = ", ".join(wording.with_interval(model.accuracy) for model in report.targets)
    judge = wording.with_interval(report.evaluator.accuracy)
    worth = Text(f"Accuracy of the model {accuracy}; of the evaluator {judge}.")
    notes = [Text(note, style="dim") for note in (*wording.notes(report), *arithmetic.notes(report))]
    return [table, Text(), worth, *notes, Text()]


def _comparison(result: Comparison) -> list[Table | Text]:
    """One table: a block of rows per attack, then what the model is worth."""
    table = _grid("Before and after")
    table.add_column("", no_wrap=True)
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", overflow="fold")
    for title, rows in [(b.title, b.rows) for b in view.blocks(result)] + [("Utility", view.utility(result))]:
        table.add_row(Text(title, style="bold"))
        for row in rows:
            if row.after.value is not None and (row.name in COLUMNS or title == "Utility"):
                table.add_row(f"  {wording.metric_short(row.name)}", *_cells(row))
    floors = [a.measurement("attack_acc1") for a in result.after.attacks if a.name.startswith("control:random")]
    found = ", ".join(wording.with_interval(floor) for floor in floors if floor)
    control = Text(f"Control, random pictures of the prior: top-1 {found or 'not measured'}.")
    return [table, Text(), control, Text()]


def _cells(row: view.Row) -> tuple[str | Text, ...]:
    """Before, after and change; the meaning of a change stands below it."""
    full = row.name in WITH_INTERVAL
    before, after = _cell(row.before, full), _cell(row.after, full)
    if row.difference is None or row.difference.value is None:
        return before, after, wording.DASH
    change = Text(wording.difference(row.difference, unit=False, spread=full))
    if full:
        change.append(f"\n{row.meaning}", STYLES[row.tone])
    return before, after, change


def _savings(result: AuditReport | Comparison) -> list[Text]:
    """What `--early-stop` left out."""
    told = savings.sentences(result)
    lines = [Text(f"Steps taken. {text}.", style="dim") for text in told[:MOST_SEARCHES]]
    if len(told) > MOST_SEARCHES:
        lines.append(Text(f"  and {len(told) - MOST_SEARCHES} more searches in the report", style="dim"))
    return [*lines, Text()] if lines else []


def _cautions(result: AuditReport | Comparison) -> list[Text]:
    """All of them: nobody may miss what has to be told."""
    lines = [Text.assemble(("! ", "bold red"), text) for text in defended.cautions(result)]
    return [Text(f"{wording.TELL}:", style="bold"), *lines, Text()] if lines else []


def _warnings(result: AuditReport | Comparison) -> list[Text]:
    found = wording.warnings(result)
    lines = [Text(f"Not measured. {text}", style="dim") for text in wording.unmeasured(result)]
    lines += [Text.assemble(("! ", "yellow"), text) for text in found[:MOST_WARNINGS]]
    if len(found) > MOST_WARNINGS:
        lines.append(Text(f"  and {len(found) - MOST_WARNINGS} more in the report", style="dim"))
    return [*lines, Text()] if lines else []


def _ending(timing: Mapping[str, Any] | None, page: Path | None) -> list[Text]:
    lines = [Text(wording.NO_PROOF, style="dim")]
    total = (timing or {}).get("total_seconds")
    if total is not None:
        lines.append(Text(f"Took {wording.duration(float(total))}.", style="dim"))
    if page is not None:
        lines.append(Text.assemble("Report: ", (str(page), f"bold link {page.resolve().as_uri()}")))
    return lines


def _measured(quantity: Quantity | None) -> bool:
    return quantity is not None and quantity.value is not None


def _cell(quantity: Quantity | None, interval: bool = True) -> str:
    if quantity is None:
        return wording.DASH
    return wording.with_interval(quantity) if interval else wording.number(quantity.value, quantity.unit)
