import io
import re
from dataclasses import replace

import numpy as np
from rich.console import Console

from mi_audit.core.fisher import FisherReport, InversionFacts, UnitFacts
from mi_audit.core.report import DataFacts, Interval
from mi_audit.nn.fisher_profile import Sample, profile
from mi_audit.report.fisher import (
    bracket,
    figure,
    headline,
    html,
    markdown,
    percent,
    picture,
    provenance,
    short_names,
    show,
)
from tests.report.sample import model

UNITS = (("net.layer1.0", "net.layer1"), ("net.layer1.1", "net.layer1"), ("net.layer2.0", "net.layer2"))


def sample(cls=(1, 1, 3, 5), mi=(6, 4, 1, 1), **more):
    """Inversion ahead of classification from the first unit on: gaps 0.4, 0.633, 0.417 in totals of 10 and 12."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.8, 1.2, (30, 4))
    people = np.repeat(np.arange(10), 3)
    first, second = (Sample(np.array(values) * noise, people) for values in (cls, mi))
    shown = profile(first, second, np.ones(4, dtype=int), "empirical", "mean")
    report = FisherReport(
        id="ab" * 32,
        tool={"mi-audit": "1"},
        device="cpu",
        command="mi-audit fisher <model>",
        model=model(0.86),
        private=DataFacts(ref="d", fingerprint="f", images=9, classes=3, splits={}),
        samples=30,
        inversion=InversionFacts(
            source="attack", run="", attacks=("gmi",), priors=("gmi-gan",), weak=False, moments=11, images=30,
            identities=10, accepted=1.0,
        ),
        units=(*(UnitFacts(name=n, kind="BasicBlock", stage=s, parameters=1000) for n, s in UNITS),
               UnitFacts(name="net.fc", kind="Linear", stage="", parameters=1000)),
        profiles=(shown,),
        freeze="67%" if shown.cut else None,
        cautions=("It is local.",),
    )  # fmt: skip
    return replace(report, **more)


def printed(report, width=100):
    page = io.StringIO()
    show(report, Console(file=page, width=width, no_color=True, highlight=False))
    return page.getvalue()


def test_the_screen_says_what_and_how_sure():
    text = printed(sample())
    assert "Begin at --freeze 67%: 2 of 3 units (2 to 2 when identities are drawn again)" in text
    assert re.search(
        r"^layer1\.1 +1,000 +\d+\.\d% +\d+\.\d% +3\.\d\d +\[\d\.\d\d, \d\.\d\d\] +\d+% +\d+% +\+63%$", text, re.M
    )
    assert "gmi, made now, up to 11 moments of each search" in text.replace("\n", " ")
    assert "! It is local." in text and max(map(len, text.splitlines())) <= 100
    assert "-0%" not in text


def test_no_freeze_point_is_said():
    report = sample(cls=(6, 4, 1, 1), mi=(1, 1, 3, 5))
    assert report.freeze is None and headline(report).startswith("No freeze point")


def test_a_gap_within_chance_is_no_freeze_point():
    report = sample()
    row = report.profiles[0].values[1]
    wide = replace(row, gap_interval=replace(row.gap_interval, low=-0.02))
    shown = replace(report.profiles[0], values=(report.profiles[0].values[0], wide, *report.profiles[0].values[2:]))
    said = headline(replace(report, profiles=(shown,)))
    assert said.startswith("No clear freeze point: the largest gap, +63% at --freeze 67% (2 of 3 units)")
    assert "\N{MINUS SIGN}2% to +" in said


def test_provenance_marks_a_weak_profile_and_names_the_run():
    made = replace(sample().inversion, weak=True, source="run", run="runs/latest", moments=1)
    text = provenance(sample(inversion=made))
    assert "WEAK" in text and "read from runs/latest" in text and "the end of each search only" in text


def test_the_figure_shows_both_tasks_and_the_cut():
    report = sample()
    shares, ratio, cumulated = figure(report).axes
    drawn = [line.get_ydata().tolist() for line in shares.lines[:2]]
    assert drawn == [
        [row.share_cls for row in report.profiles[0].values],
        [r.share_mi for r in report.profiles[0].values],
    ]
    assert ratio.lines[0].get_ydata().tolist() == [row.ratio for row in report.profiles[0].values]
    assert cumulated.lines[1].get_ydata().tolist()[0] == 0
    assert cumulated.lines[-1].get_xdata() == [2.5, 2.5]
    assert [label.get_text() for label in cumulated.get_xticklabels()] == ["layer1.0", "layer1.1", "layer2.0", "head"]
    assert not any(
        line.get_linestyle() == "--" for line in figure(sample(cls=(6, 4, 1, 1), mi=(1, 1, 3, 5))).axes[0].lines
    )


def test_pictures_are_files_of_their_kind_and_reproducible():
    drawn = {kind: picture(sample(), kind) for kind in ("svg", "png")}
    assert drawn["png"].startswith(b"\x89PNG") and b"<svg" in drawn["svg"]
    assert all(picture(sample(), kind) == file for kind, file in drawn.items())


def test_the_page_is_self_contained_and_escapes():
    page = html(sample())
    assert page.count("<svg") == 1 and "<?xml" not in page and "<script" not in page
    assert not re.search(r"(src|href)=\"https?:", page)
    assert "fisher &lt;model&gt;" in page and "Begin at --freeze 67%" in page
    assert page.count('class="cut"') == 1 and "net.layer2.0" in page


def test_names_lose_what_they_share_and_intervals_are_short():
    assert short_names(sample()) == ["layer1.0", "layer1.1", "layer2.0", "head"]
    one = sample(units=(UnitFacts(name="net.0", kind="Conv2d", stage="", parameters=1), sample().units[-1]))
    assert short_names(one) == ["0", "head"]
    assert bracket(None) == "" and bracket(sample().profiles[0].cut_interval, 0) == "[2, 2]"


def test_markdown_is_a_table_of_the_units():
    text = markdown(sample())
    assert text.count("\n| `net.") == 4 and "Begin at --freeze" in text and "- It is local." in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {7}
    assert "`mi-audit fisher <model>`" in text


def test_intervals_of_shares_are_in_percent_with_real_minus_signs():
    assert percent(None) == ""
    ends = Interval(low=-0.0213, high=-0.0002, method="bootstrap")
    assert percent(ends) == "[\N{MINUS SIGN}2.1, 0.0]"


def test_the_page_warns_where_there_is_no_clear_freeze_point():
    assert 'class="banner plain"' in html(sample()) and 'class="banner unsure"' in html(sample(freeze=None))


def test_a_gap_without_an_interval_is_no_freeze_point():
    report = sample()
    unsure = tuple(replace(row, gap_interval=None) for row in report.profiles[0].values)
    said = headline(replace(report, profiles=(replace(report.profiles[0], values=unsure, cut_interval=None),)))
    assert said.startswith(
        "No clear freeze point: the largest gap, +63% at --freeze 67% (2 of 3 units), has no interval"
    )
