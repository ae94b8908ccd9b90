"""A sweep for people: the table of the terminal, the plot of utility against leakage, and a page of its own."""

import base64
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mi_audit.core.report import Quantity
from mi_audit.core.sweep import Place, Sweep, SweepPoint, TwinPoint, Worth
from mi_audit.report import wording
from mi_audit.report.html import environment
from mi_audit.report.markdown import code, escape
from mi_audit.report.markdown import table as markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 100  # columns
PLACES: dict[Place, str] = {
    "front": "front",
    "noise": "within noise",
    "dominated": "behind",
    "unmeasured": wording.DASH,
}
INK, TWIN, ACCENT, SOFT = "#1b2126", "#98a1a8", "#1f5a80", "#b9b2a2"  # of the page
LETTER, NEAR = 5.5, 30  # points: the width of a letter in the plot, and how far apart up and down names never meet
TWINS = "no defense"


class Row(NamedTuple):
    """One line of the table, in words.

    Attributes:
        name: The value, or what the twin is called.
        levels: Test accuracy, attack accuracy, exposure.
        changes: The same, defended minus twin.
        place: Where it lies between the others, and what is wrong with it.
        recommended, twin: What to emphasise.
    """

    name: str
    levels: tuple[str, ...]
    changes: tuple[str, ...]
    place: str
    recommended: bool = False
    twin: bool = False

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every level with its change."""
        return tuple(zip(self.levels, self.changes, strict=True))


class Mark(NamedTuple):
    """One dot of the plot."""

    name: str
    worth: Worth
    colour: str
    marker: str

    @property
    def drawn(self) -> bool:
        """Whether both numbers are there."""
        return None not in (self.worth.accuracy.value, self.worth.attack_accuracy.value)

    @property
    def place(self) -> tuple[float, float]:
        """Accuracy across, attack accuracy up, in percent."""
        return _percent(self.worth.accuracy), _percent(self.worth.attack_accuracy)


def rows(sweep: Sweep) -> tuple[Row, ...]:
    """The twins, then the values in their order, those that failed with a dash everywhere."""
    return (*_twins(sweep), *(_row(sweep, value) for value in sweep.values))


def show(sweep: Sweep, console: Console) -> None:
    """Print the table, the recommendation and what to know before trusting it."""
    width = min(WIDTH, console.width)
    table = Table(
        title=f"Utility against leakage over {sweep.parameter}", title_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False,
    )  # fmt: skip
    shown = _shown(sweep)
    narrow = width < WIDTH and shown > 2  # then the front has no column of its own
    table.add_column("", no_wrap=not narrow)
    for head in ("accuracy", "attack accuracy", "exposure")[:shown]:
        table.add_column(head, justify="right", no_wrap=True)
    if not narrow:
        table.add_column("front")
    for row in rows(sweep):
        name = Text(f"{row.name} *" if row.recommended else row.name, "bold green" if row.recommended else "")
        cells = [Text.assemble(level, (f"\n{change}", "dim") if change else "") for level, change in row.pairs[:shown]]
        last = [] if narrow else [Text(row.place)]
        if narrow:
            name.append(f"\n{row.place}", "dim")
        table.add_row(name, *cells, *last, style="dim" if row.twin else "")
    dim = Text("Below each value: its change against the model without defense, in points.", style="dim")
    for part in (Text(), table, dim, Text(), headline(sweep), *_notes(sweep)):
        console.print(part, width=width, highlight=False)


def headline(sweep: Sweep) -> Text:
    """The recommended value and the reason, or that there is none."""
    name = f"* {sweep.advice.value}" if sweep.advice.value else "No recommendation"
    badge = Text(f" {name} ", style=f"bold reverse {'green' if sweep.advice.value else 'yellow'}")
    return Text.assemble(badge, "  ", sweep.advice.why)


def picture(sweep: Sweep, kind: Literal["png", "svg"]) -> bytes:
    """Accuracy across, attack accuracy up, with intervals as bars, values as labels and the twin in grey.

    Equal sweeps give equal bytes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "mi-audit", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        _draw(figure.add_subplot(), sweep)
        page = io.BytesIO()
        nothing = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(page, format=kind, metadata=nothing)
    return page.getvalue()


def html(sweep: Sweep) -> str:
    """One self-contained page: the recommendation, the plot, the table, how to read it, and the command."""
    plot = base64.b64encode(picture(sweep, "svg")).decode()
    return environment().get_template("sweep.html.j2").render(
        sweep=sweep, rows=rows(sweep), plot=f"data:image/svg+xml;base64,{plot}", description=describe(sweep),
        shown=_shown(sweep),
    )  # fmt: skip


def markdown(sweep: Sweep) -> str:
    """The recommendation, the table and what to know before trusting it, as GitHub-flavoured Markdown."""
    shown = _shown(sweep)
    heads = ("test accuracy", "attack accuracy", "exposure")[:shown]
    cells = [
        (f"**{escape(row.name)}**" if row.recommended else escape(row.name), *row.levels[:shown], escape(row.place))
        for row in rows(sweep)
    ]
    notes = [f"{one.value} failed: {one.message}" for one in sweep.failures] + list(sweep.warnings)
    lines = [
        f"## mi-audit: {escape(sweep.method)} over {escape(sweep.parameter)}",
        "",
        f"**{escape(sweep.advice.value or 'No recommendation')}.** {escape(sweep.advice.why)}",
        *markdown_table((escape(sweep.parameter), *heads, "front"), cells),
        *(f"- {escape(wording.as_sentence(text))}" for text in notes),
        "",
        f"{wording.NO_PROOF} Reproduce: {code(sweep.command)}",
    ]
    return "\n".join(lines) + "\n"


def describe(sweep: Sweep) -> str:
    """The plot in words, for those who do not see it."""
    named = [(row.name, *row.levels) for row in rows(sweep) if wording.DASH not in row.levels[:2]]
    return "; ".join(f"{name}: accuracy {accuracy}, attack accuracy {attack}" for name, accuracy, attack, _ in named)


def _shown(sweep: Sweep) -> int:
    """How many measurements there are to show: the exposure is the third where it was verified."""
    worths = [point.worth for point in sweep.points] + [twin.worth for twin in sweep.twins]
    return 3 if any(worth.exposure is not None for worth in worths) else 2


def _twins(sweep: Sweep) -> Iterator[Row]:
    for twin in sweep.twins:
        yield Row(_name(sweep, twin), _worth(twin.worth), ("",) * 3, PLACES[twin.place], twin=True)


def _name(sweep: Sweep, twin: TwinPoint) -> str:
    return TWINS if len(sweep.twins) == 1 else f"{TWINS} ({', '.join(twin.values)})"


def _row(sweep: Sweep, value: str) -> Row:
    point = next((point for point in sweep.points if point.value == value), None)
    if point is None:
        return Row(value, (wording.DASH,) * 3, ("",) * 3, "failed")
    changes = tuple(map(_change, (point.accuracy_change, point.attack_change, point.exposure_change)))
    return Row(value, _worth(point.worth), changes, _place(point), recommended=_chosen(sweep, point))


def _place(point: SweepPoint) -> str:
    gate = {None: "", "PASS": "", "FAIL": ", gate fails", "INCONCLUSIVE": ", gate undecided"}[point.verdict]
    return PLACES[point.place] + gate + (", failed jobs" if point.failed else "")


def _chosen(sweep: Sweep, point: SweepPoint) -> bool:
    return point.value == sweep.advice.value


def _worth(worth: Worth) -> tuple[str, ...]:
    return tuple(wording.with_interval(one) for one in (worth.accuracy, worth.attack_accuracy, worth.exposure))


def _change(change: Quantity | None) -> str:
    return "" if change is None or change.value is None else wording.difference(change, unit=False)


def _notes(sweep: Sweep) -> list[Text]:
    lines = [Text(f"{one.value} failed: {one.message}", style="red") for one in sweep.failures]
    lines += [Text.assemble(("! ", "yellow"), text) for text in sweep.warnings[:8]]
    return [Text(), *lines] if lines else []


def _draw(axes: "Axes", sweep: Sweep) -> None:
    marks = [Mark(_name(sweep, twin), twin.worth, TWIN, "s") for twin in sweep.twins]
    for point in sweep.points:
        colour = ACCENT if _chosen(sweep, point) else INK if point.place == "front" else SOFT
        marks.append(Mark(point.value, point.worth, colour, "D" if _chosen(sweep, point) else "o"))
    for mark in marks:
        _dot(axes, mark)
    front = [(one.worth, one.place) for one in sweep.twins] + [(one.worth, one.place) for one in sweep.points]
    line = sorted(
        (_percent(worth.accuracy), _percent(worth.attack_accuracy)) for worth, place in front if place == "front"
    )
    axes.plot([x for x, _ in line], [y for _, y in line], color=INK, linewidth=0.8, linestyle=":", zorder=1)
    axes.set_xlabel("Test accuracy (%), better to the right")
    axes.set_ylabel("Attack accuracy of the strongest attack (%), better below")
    axes.set_title(f"{sweep.method}: {sweep.parameter}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2, linewidth=0.5)
    axes.margins(0.12)
    _label(axes, [mark for mark in marks if mark.drawn])


def _dot(axes: "Axes", mark: Mark) -> None:
    if not mark.drawn:
        return
    worth = mark.worth
    axes.errorbar(
        *mark.place, xerr=_bars(worth.accuracy), yerr=_bars(worth.attack_accuracy), color=mark.colour,
        marker=mark.marker, markersize=6, elinewidth=0.9, capsize=2.5, zorder=2,
    )  # fmt: skip


def _label(axes: "Axes", marks: list[Mark]) -> None:
    """The names right above the dots, those of dots side by side in lines above each other."""
    axes.autoscale_view()
    lines: list[tuple[float, float, int]] = []  # where a name ends, in points, and in which line above its dot
    to_points = 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    for mark in sorted(marks, key=lambda mark: mark.place):
        x, y = axes.transData.transform(mark.place) * to_points
        near = {line for end, level, line in lines if x < end and abs(y - level) < NEAR}
        line = next(line for line in range(len(lines) + 1) if line not in near)
        lines.append((x + LETTER * (len(mark.name) + 2), y, line))
        axes.annotate(
            mark.name, mark.place, xytext=(6, 5 + 11 * line), textcoords="offset points", color=mark.colour, fontsize=9
        )


def _percent(quantity: Quantity) -> float:
    return 100 * (quantity.value or 0.0)


def _bars(quantity: Quantity) -> list[list[float]] | None:
    if quantity.interval is None or quantity.value is None:
        return None
    low, high = quantity.value - quantity.interval.low, quantity.interval.high - quantity.value
    return [[100 * max(0.0, low)], [100 * max(0.0, high)]]
