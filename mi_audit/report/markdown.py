"""GitHub-flavoured Markdown for step summaries and pull requests: tables and sentences, never a picture."""

import re
from collections.abc import Iterator, Sequence

from mi_audit.core.report import AuditReport, Comparison
from mi_audit.report import arithmetic, defended, savings, view, wording

LARGEST = 64 * 1024  # bytes
MOST_ITEMS = 20  # of any list
MARKS = {"good": "🟢", "bad": "🔴", "unsure": "🟡", "plain": "⚪"}


def markdown(result: AuditReport | Comparison) -> str:
    """The result as Markdown of at most 64 KiB; names from outside cannot become markup."""
    text = "\n".join(_lines(result)).rstrip() + "\n"
    data = text.encode()
    if len(data) <= LARGEST:
        return text
    ending = "\n\nShortened; the whole result is in `result.json`.\n"
    kept = data[: LARGEST - len(ending.encode())].decode(errors="ignore")
    return kept.rpartition("\n")[0] + ending


def escape(text: object) -> str:
    """One line of text in which no character means anything to Markdown or HTML."""
    line = " ".join(str(text).split())
    return re.sub(
        r"([\\`*_{}\[\]()#+!|~$])",
        r"\\\1",
        line.replace("@", "@\u200b").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
    )


def code(text: object) -> str:
    """One line of text as code, whatever backticks and pipes it holds."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def _lines(result: AuditReport | Comparison) -> Iterator[str]:
    before, after = view.sides(result)
    head = wording.headline(result)
    yield f"## {MARKS[head.tone]} mi-audit: {head.outcome}"
    yield ""
    yield escape(head.sentence)
    yield from _rules(result)
    yield from _list(wording.TELL, defended.cautions(result))
    yield from _measurements(result, compared=before is not None)
    yield from _validity(after)
    yield from _list("How controls were made", wording.notes(result))
    yield from _list("What networks computed in", arithmetic.notes(result))
    yield from _list("Steps that searches took", savings.sentences(result))
    yield from _list("Warnings", wording.warnings(result))
    yield from _list("Not measured", wording.unmeasured(result))
    yield from _model(after)
    yield from _list("What this cannot tell", (*after.limits, wording.NO_PROOF))
    yield f"Reproduce: {code(result.command)}"
    yield ""
    yield f"<sub>result {escape(result.id[:12])}, schema {escape(result.schema_version)}; pictures stay local</sub>"


def _rules(result: AuditReport | Comparison) -> Iterator[str]:
    if result.verdict is None:
        yield from ("", "No gate rule was given, so nothing was gated.", "")
        return
    rows = [
        (wording.OUTCOMES[r.outcome][0], escape(r.id), code(r.when), escape(r.reason)) for r in result.verdict.rules
    ]
    yield from table(("Outcome", "Rule", "Fails on", "Reason"), rows)


def _validity(report: AuditReport) -> Iterator[str]:
    """The checks, and the judge they rest on; what passed needs no clearing path."""
    if report.validity:
        rows = [
            (wording.CHECKS[flag.passed][0], escape(flag.id), escape(flag.detail), escape(flag.clears) or wording.DASH)
            for flag in report.validity
        ]
        yield from table(("Check", "Flag", "Found", "What clears it"), rows)
    if report.verifier is not None:
        judge = report.verifier
        rates = f"accepts {wording.with_interval(judge.far)} of impostor pairs and "
        rates += f"{wording.with_interval(judge.sensitivity)} of genuine pairs"
        weakness = escape(wording.as_sentence(judge.weakness))
        yield f"Verifier {code(judge.arch)}, trained on {escape(judge.trained_on)}: {rates}. {weakness}"
        yield ""


def _measurements(result: AuditReport | Comparison, *, compared: bool) -> Iterator[str]:
    rows = [(block.title, row) for block in view.blocks(result) for row in block.rows]
    rows += [("Model", row) for row in view.utility(result)]
    if compared:
        columns: tuple[str, ...] = ("", "Measurement", "Before", "After", "Difference", "Meaning", "Control")
    else:
        columns = ("", "Measurement", "Value", "Control", "Leakage")
    yield from table(columns, [_cells(title, row, compared=compared) for title, row in rows])


def _cells(title: str, row: view.Row, *, compared: bool) -> tuple[str, ...]:
    after, control = wording.with_interval(row.after), wording.with_interval(row.control)
    if not compared:
        return escape(title), escape(row.title), after, control, row.direction or wording.DASH
    difference = wording.difference(row.difference) if row.difference else wording.DASH
    meaning = escape(row.meaning) or wording.DASH
    return escape(title), escape(row.title), wording.with_interval(row.before), after, difference, meaning, control


def _model(report: AuditReport) -> Iterator[str]:
    models = [(f"Model {model.ref}", model) for model in report.targets] + [("Evaluator", report.evaluator)]
    rows = [
        (escape(name), code(model.arch), wording.with_interval(model.accuracy), code(model.sha256[:12]))
        for name, model in models[:MOST_ITEMS]
    ]
    yield from table(("Network", "Architecture", "Accuracy", "Weights"), rows)
    data = f"private data {code(report.private.ref)}, public data {code(report.public.ref)}"
    yield f"{wording.attacked_line(report)}; {data}; {escape(report.overlap)}."
    yield ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table, with an empty line before and after it; cells are Markdown already."""
    yield ""
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _list(title: str, items: Sequence[str]) -> Iterator[str]:
    if not items:
        return
    yield f"**{title}**"
    yield ""
    for item in items[:MOST_ITEMS]:
        yield f"- {escape(item)}"
    if len(items) > MOST_ITEMS:
        yield f"- and {len(items) - MOST_ITEMS} more"
    yield ""
