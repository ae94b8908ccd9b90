"""The profile of Fisher information for people: a figure, a page, a table on the screen."""

import io
import re
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mi_audit.core.fisher import FisherReport, Profile
from mi_audit.core.report import Interval
from mi_audit.report.html import environment
from mi_audit.report.markdown import code, escape
from mi_audit.report.markdown import table as markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLS, MI, CUT, GAP = "#1f5a80", "#b4522d", "#59636c", "#20714a"
MANY = 24  # units from which on their names no longer fit below the axis
WIDTH = 100  # columns
READING = (
    "ratio: share of inversion / share of classification; above 1 the unit matters more for inversion. "
    "gap: cumulated share of inversion minus that of classification, what a freeze up to here takes from inversion "
    "beyond classification. Brackets: 95 % by drawing identities again."
)


def figure(report: FisherReport) -> "Figure":
    """Three panels over depth: shares of both tasks, their ratio, and the cumulative shares with the cut."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    shown, names = report.profiles[0], short_names(report)
    page = Figure(figsize=(9.2, 8.4), layout="constrained")
    shares, ratio, cumulated = page.subplots(3, 1, sharex=True, height_ratios=(3, 2, 3))
    places = list(range(1, len(names) + 1))
    _band(shares, places, [row.share_cls for row in shown.values], [r.share_cls_interval for r in shown.values], CLS)
    _band(shares, places, [row.share_mi for row in shown.values], [r.share_mi_interval for r in shown.values], MI)
    shares.set(ylabel="share of Fisher information", ylim=(0, None))
    shares.legend(shares.lines, ["classification", "inversion"], frameon=False)
    known = [(place, row) for place, row in zip(places, shown.values, strict=True) if row.ratio]
    _band(ratio, [p for p, _ in known], [row.ratio or 1 for _, row in known], [r.ratio_interval for _, r in known], GAP)
    ratio.axhline(1, color=CUT, linewidth=0.8, linestyle=":")
    ratio.set(ylabel="inversion / classification", yscale="log")
    low, high = ratio.get_ylim()
    ratio.set_ylim(min(low, 0.45), max(high, 2.2))  # so that a few percent do not look like much
    ratio.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ratio.yaxis.set_major_formatter("{x:g}")
    ratio.yaxis.set_minor_formatter(NullFormatter())
    cls = np.array([0, *(row.cumulative_cls for row in shown.values)])
    mi = np.array([0, *(row.cumulative_mi for row in shown.values)])
    for values, colour in ((cls, CLS), (mi, MI)):
        cumulated.plot([0, *places], values, color=colour, marker="o", markersize=3)
    for where, colour in ((mi > cls, MI), (mi < cls, CLS)):  # whose curve runs ahead
        cumulated.fill_between(
            [0, *places], cls, mi, where=list(where), interpolate=True, color=colour, alpha=0.1, lw=0
        )
    cumulated.set(ylabel="cumulative share", ylim=(0, 1.03), xlim=(0, len(names) + 0.5))
    for axes in (shares, ratio, cumulated):
        axes.spines[["top", "right"]].set_visible(False)
        if shown.cut:
            axes.axvline(shown.cut + 0.5, color=CUT, linewidth=1.2, linestyle="--")
    if shown.cut:
        late = shown.cut > len(names) / 2  # then there is no room to the right
        cumulated.annotate(
            f"largest gap: {shown.cut} of {len(names) - 1} units",
            (shown.cut + 0.5, 0.04), xytext=(-5 if late else 5, 0), textcoords="offset points",
            ha="right" if late else "left", color=CUT, fontsize=9,
        )  # fmt: skip
    step = 1 if len(names) <= MANY else -(-len(names) // MANY)
    cumulated.set_xticks(places[::step], names[::step], rotation=45, ha="right", fontsize=8)
    return page


def picture(report: FisherReport, kind: Literal["svg", "png"]) -> bytes:
    """The figure as a file; equal reports give equal bytes."""
    from matplotlib import rc_context

    page, buffer = figure(report), io.BytesIO()
    with rc_context({"svg.hashsalt": report.id, "svg.fonttype": "path"}):
        page.savefig(buffer, format=kind, dpi=144, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()


def html(report: FisherReport) -> str:
    """One self-contained page with the figure inline; no request leaves it and no script runs in it."""
    drawing = picture(report, "svg").decode()
    return environment().get_template("fisher.html.j2").render(
        report=report, shown=report.profiles[0], svg=drawing[drawing.index("<svg") :], headline=headline(report),
        provenance=provenance(report), reading=READING, bracket=bracket, percent=percent, signed=_signed,
        certain=headline(report).startswith("Begin"),
        rows=list(zip(report.units, report.profiles[0].values, strict=True)),
    )  # fmt: skip


def markdown(report: FisherReport) -> str:
    """The suggestion, the table and the cautions as GitHub-flavoured Markdown."""
    heads = ("unit", "parameters", "share, classification", "share, inversion", "ratio", "gap")
    cells = [
        (
            code(unit.name), f"{unit.parameters:,}", f"{row.share_cls:.1%}", f"{row.share_mi:.1%}",
            "none" if row.ratio is None else f"{row.ratio:.2f} {bracket(row.ratio_interval)}".rstrip(),
            f"{_signed(row.gap)} {percent(row.gap_interval)}".rstrip(),
        )
        for unit, row in zip(report.units, report.profiles[0].values, strict=True)
    ]  # fmt: skip
    lines = [
        "## mi-audit: layer-wise Fisher information",
        "",
        f"**{escape(headline(report))}**",
        "",
        escape(provenance(report)),
        *markdown_table(heads, cells),
        *(f"- {escape(text)}" for text in report.cautions),
        "",
        f"Reproduce: {code(report.command)}",
    ]
    return "\n".join(lines) + "\n"


def show(report: FisherReport, console: Console) -> None:
    """Print the profile on `console`, on at most 100 columns."""
    width = min(WIDTH, console.width)
    shown = report.profiles[0]
    parts: list[Text | Table] = [
        Text(),
        Text(headline(report), style="bold"),
        Text(provenance(report), style="dim"),
        Text(),
        _table(report, shown),
        Text(),
        Text(READING, style="dim"),
        Text(),
        *(Text.assemble(("! ", "yellow"), caution) for caution in report.cautions),
    ]
    for part in parts:
        console.print(part, width=width, highlight=False)


def headline(report: FisherReport) -> str:
    """What the profile suggests, in one sentence."""
    shown, depth = report.profiles[0], len(report.units) - 1
    if report.freeze is None:
        return "No freeze point: nowhere does inversion run ahead of classification."
    best = shown.values[shown.cut - 1]
    at = f"the largest gap, {_signed(best.gap)} at --freeze {report.freeze} ({shown.cut} of {depth} units)"
    if best.gap_interval is None:
        return f"No clear freeze point: {at}, has no interval, because too few people have gradients."
    if best.gap_interval.low <= 0:
        between = f"{_signed(best.gap_interval.low)} to {_signed(best.gap_interval.high)}"
        return f"No clear freeze point: {at}, is within chance, {between}."
    return (
        f"Begin at --freeze {report.freeze}: {shown.cut} of {depth} units{_whole(shown.cut_interval)}, up to "
        f"{report.units[shown.cut - 1].name}; gap {_signed(best.gap)}"
    )


def provenance(report: FisherReport) -> str:
    """What it was measured on."""
    made = report.inversion
    way = "the end of each search only" if made.moments == 1 else f"up to {made.moments} moments of each search"
    where = f"read from {made.run}" if made.source == "run" else "made now"
    weak = ", WEAK: no image prior" if made.weak else ""
    return (
        f"{report.model.arch}, accuracy {report.model.accuracy.value or 0:.1%} · classification: {report.samples} "
        f"private validation images · inversion: {made.images} images of {made.identities} people by "
        f"{', '.join(made.attacks)}, {where}, {way}{weak}"
    )


def short_names(report: FisherReport) -> list[str]:
    """Names of the units without the dotted prefix that all of them share."""
    split = [unit.name.split(".") for unit in report.units[:-1]]
    shared = 0
    while split and all(len(parts) > shared + 1 and parts[shared] == split[0][shared] for parts in split):
        shared += 1
    return [*(".".join(parts[shared:]) for parts in split), "head"]


def bracket(interval: Interval | None, digits: int = 2) -> str:
    """An interval as `[1.20, 1.50]`; empty without one."""
    return "" if interval is None else f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def percent(interval: Interval | None) -> str:
    """An interval of shares as `[91.5, 94.0]`, in percent; empty without one."""
    return "" if interval is None else _minus(f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]")


def _minus(text: str) -> str:
    """With real minus signs, and without one before what rounds to nothing."""
    return re.sub(r"-0\.0(?!\d)", "0.0", text).replace("-", "\N{MINUS SIGN}")


def _signed(share: float) -> str:
    """A difference of shares in whole percent; what rounds to nothing has no sign."""
    return _minus(f"{round(100 * share):+d}%") if round(100 * share) else "0%"


def _whole(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f" ({interval.low:.0f} to {interval.high:.0f} when identities are drawn again)"


def _table(report: FisherReport, shown: Profile) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold dim", pad_edge=False)
    table.add_column("unit", no_wrap=True, overflow="ellipsis", max_width=24)
    for name in ("parameters", "s cls", "s mi", "ratio", "", "cum cls", "cum mi", "gap"):
        table.add_column(name, justify="right", no_wrap=True)
    for place, (name, unit, row) in enumerate(zip(short_names(report), report.units, shown.values, strict=True), 1):
        table.add_row(
            name,
            f"{unit.parameters:,}",
            f"{row.share_cls:.1%}",
            f"{row.share_mi:.1%}",
            "none" if row.ratio is None else f"{row.ratio:.2f}",
            bracket(row.ratio_interval),
            f"{row.cumulative_cls:.0%}",
            f"{row.cumulative_mi:.0%}",
            _signed(row.gap),
            style="bold" if place == shown.cut else "",
            end_section=place == shown.cut,
        )
    return table


def _band(axes: "Axes", places: list[int], values: list[float], intervals: list[Interval | None], colour: str) -> None:
    """A line with dots, and its intervals as a band."""
    axes.plot(places, values, color=colour, marker="o", markersize=3.5)
    sure = [(place, one) for place, one in zip(places, intervals, strict=True) if one is not None]
    if sure:
        axes.fill_between(
            [place for place, _ in sure], [one.low for _, one in sure], [one.high for _, one in sure],
            color=colour, alpha=0.18, linewidth=0,
        )  # fmt: skip
