import io
import re
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console

from mi_audit.core.report import Interval, Quantity
from mi_audit.core.sweep import Advice, Sweep, SweepFailure, SweepPoint, TwinPoint, Worth
from mi_audit.report.sweep import html, markdown, picture, rows, show


def share(value, spread=0.05, low=None):
    ends = Interval(low=value - spread if low is None else low, high=value + spread, method="bootstrap")
    return Quantity(value=value, unit="share", count=60, counted="images", interval=ends)


def worth(accuracy, leak, exposure=None):
    return Worth(
        accuracy=share(accuracy, 0.01), attack="ppa", attack_accuracy=share(leak),
        exposure=None if exposure is None else share(exposure),
    )  # fmt: skip


def point(value, accuracy, leak, **more):
    facts = {
        "value": value, "folder": value, "worth": worth(accuracy, leak), "twin": 0,
        "accuracy_change": share(accuracy - 0.98, 0.01), "attack_change": share(leak - 0.7), "exposure_change": None,
        "place": "front", "verdict": None, "failed": (),
    }  # fmt: skip
    return SweepPoint(**{**facts, **more})


def sweep(**more):
    facts = {
        "command": "mi-audit defend m --sweep freeze=40%,80%,90%", "parameter": "freeze", "method": "tldmi",
        "values": ("40%", "80%", "90%"), "points": (point("40%", 0.97, 0.5, place="noise"), point("80%", 0.96, 0.25)),
        "twins": (TwinPoint(values=("40%", "80%"), worth=worth(0.98, 0.7), place="front"),),
        "failures": (SweepFailure(value="90%", folder="90%", message="expected A, got <B>; do C"),),
        "advice": Advice(value="80%", tied=("40%",), tolerance=0.02, why="80% leaks least & why."),
        "warnings": ("the prior is weak",),
    }  # fmt: skip
    return Sweep(**{**facts, **more})


def printed(found, width=100):
    page = io.StringIO()
    show(found, Console(file=page, width=width, no_color=True, highlight=False))
    return page.getvalue()


def test_the_table_has_the_twin_and_every_value():
    found = rows(sweep())
    assert [row.name for row in found] == ["no defense", "40%", "80%", "90%"]
    assert found[0].levels[:2] == ("98.0% [97.0, 99.0]", "70.0% [65.0, 75.0]") and found[0].changes == ("", "", "")
    assert found[2].changes[1] == "\N{MINUS SIGN}45.0 [\N{MINUS SIGN}50.0, \N{MINUS SIGN}40.0]"
    assert [row.place for row in found] == ["front", "within noise", "front", "failed"]
    assert [row.recommended for row in found] == [False, False, True, False]


def test_the_terminal_shows_the_recommendation_and_what_failed():
    text = printed(sweep())
    assert re.search(r"80% \*\s+96\.0% \[95\.0, 97\.0\]", text)
    assert " * 80%   80% leaks least & why." in text
    assert "90% failed: expected A, got <B>; do C" in text and "! the prior is weak" in text
    assert "exposure" not in text and max(map(len, text.splitlines())) <= 100


def test_exposure_has_columns_when_it_was_measured():
    exposed = point("80%", 0.96, 0.25, worth=worth(0.96, 0.25, 0.1), exposure_change=share(-0.3))
    found = sweep(points=(exposed,))
    assert "exposure" in printed(found) and "10.0% [5.0, 15.0]" in printed(found)
    assert max(map(len, printed(found).splitlines())) <= 100
    assert "10.0% [5.0, 15.0]" in html(found)


def test_a_narrow_terminal_shows_the_front_below_the_name():
    exposed = point("80%", 0.96, 0.25, worth=worth(0.96, 0.25, 0.1), exposure_change=share(-0.3), verdict="FAIL")
    text = printed(sweep(points=(point("40%", 0.97, 0.5, place="noise"), exposed)), width=80)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert re.search(r"^within noise +\N{MINUS SIGN}1\.0", text, re.M) and re.search(r"^front, gate", text, re.M)


def test_names_of_dots_side_by_side_stand_in_lines_above_each_other():
    from matplotlib.figure import Figure

    from mi_audit.report import sweep as module

    points = (point("40%", 0.97, 0.5), point("60%", 0.9701, 0.5), point("80%", 0.96, 0.1))
    axes = Figure(figsize=(6.4, 4.4)).add_subplot()
    module._draw(axes, sweep(points=points))
    offsets = {text.get_text(): text.xyann[1] for text in axes.texts}
    assert offsets["40%"] == offsets["80%"] == 5 and offsets["60%"] == 16


def test_markdown_is_a_table_and_hostile_names_stay_text():
    text = markdown(sweep(points=(point("40%", 0.97, 0.5), point("80%", 0.96, 0.25)), method="<b>*"))
    assert "&lt;b&gt;\\*" in text and "got &lt;B&gt;" in text and "- The prior is weak." in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {5}


def test_without_a_recommendation_it_says_so():
    found = sweep(advice=Advice(value=None, tied=(), tolerance=0.02, why="All is noise."))
    assert "No recommendation   All is noise." in printed(found)
    assert "No recommendation" in html(found) and not any(row.recommended for row in rows(found))


def test_gates_and_failed_jobs_stand_in_the_last_column():
    points = (point("40%", 0.97, 0.5, verdict="FAIL"), point("80%", 0.9, 0.2, verdict="PASS", failed=("ppa",)))
    assert [row.place for row in rows(sweep(points=points))[1:3]] == ["front, gate fails", "front, failed jobs"]


def test_twins_of_their_own_are_told_apart():
    twins = tuple(TwinPoint(values=(v,), worth=worth(0.98, 0.7), place="front") for v in ("5", "10"))
    found = sweep(twins=twins, points=(point("5", 0.97, 0.5), point("10", 0.96, 0.2, twin=1)), values=("5", "10"))
    assert [row.name for row in rows(found)] == ["no defense (5)", "no defense (10)", "5", "10"]


def test_the_page_asks_nobody_for_anything_and_escapes():
    page = html(sweep())
    assert "http:" not in page and "https:" not in page and "<script" not in page
    assert "got &lt;B&gt;" in page and "80% leaks least &amp; why." in page
    assert 'src="data:image/svg+xml;base64,' in page and "(recommended)" in page
    assert "no defense: accuracy 98.0% [97.0, 99.0], attack accuracy 70.0% [65.0, 75.0]" in page


def test_the_plot_labels_values_and_twin_and_is_reproducible():
    found = sweep()
    assert picture(found, "svg") == picture(found, "svg") and picture(found, "png") == picture(found, "png")
    image = Image.open(io.BytesIO(picture(found, "png")))
    assert image.size == (960, 660) and len(image.getcolors(2**20)) > 10
    other = replace(found, advice=replace(found.advice, value=None))
    assert picture(other, "png") != picture(found, "png")


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_plot_without_intervals_or_numbers_is_still_a_plot(kind):
    bare = replace(share(0.5), interval=None)
    nothing = Quantity(value=None, unit="share", count=0, counted="images", reason="no attack was measured")
    points = (
        point("40%", 0.9, 0.5, worth=Worth(accuracy=bare, attack="ppa", attack_accuracy=bare, exposure=None)),
        point("80%", 0.9, 0.5, worth=Worth(accuracy=bare, attack="", attack_accuracy=nothing, exposure=None)),
    )
    assert len(picture(sweep(points=points), kind)) > 1000


def test_bars_never_turn_round_when_rounding_moves_an_end_past_the_value():
    assert len(picture(sweep(points=(point("40%", 0.9, 0.5, worth=worth(0.9, 0.0)),)), "svg")) > 1000
