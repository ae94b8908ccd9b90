import io

import pytest
from rich.console import Console

from mi_audit.cli.console import Bars, Lines, duration, watching
from mi_audit.cli.session import Session


class Watch:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def plain():
    lines, watch = [], Watch()
    return Lines(lines.append, interval=15.0, clock=watch), lines, watch


def test_one_line_per_interval_with_share_and_eta(plain):
    sink, lines, watch = plain
    for done in range(61):
        watch.now = float(done)
        sink.step("fit", done, 120)
    assert lines == [
        "fit: 12%, about 1 min 45 s left",
        "fit: 25%, about 1 min 30 s left",
        "fit: 37%, about 1 min 15 s left",
        "fit: 50%, about 1 min 0 s left",
    ]


def test_short_work_is_not_mentioned(plain):
    sink, lines, watch = plain
    for done in range(11):
        watch.now = float(done)
        sink.step("fit", done, 10)
    assert lines == []


def test_long_work_says_when_it_is_done(plain):
    sink, lines, watch = plain
    for done in (0, 1, 2):
        watch.now = 20.0 * done
        sink.step("fit", done, 2)
    assert lines == ["fit: 50%, about 20 s left", "fit: done in 40 s"]


def test_labels_have_clocks_of_their_own(plain):
    sink, lines, watch = plain
    sink.step("a", 0, 4)
    watch.now = 10.0
    sink.step("b", 0, 4)
    watch.now = 16.0
    sink.step("a", 1, 4)
    sink.step("b", 1, 4)
    assert lines == ["a: 25%, about 48 s left"]


def test_stages_notes_and_warnings_are_lines(plain):
    sink, lines, _ = plain
    sink.stage("Loading")
    sink.note("901 images")
    sink.warn("overlap")
    assert lines == ["== Loading", "901 images", "warning: overlap"]


def test_bars_print_what_must_last():
    page = io.StringIO()
    with Bars(Console(file=page, force_terminal=True, width=100, color_system=None)) as bars:
        bars.stage("Attack [gmi]")
        bars.note("note")
        bars.warn("warning")
        bars.step("a [label]", 1, 2)
        bars.step("a [label]", 2, 2)
        bars.step("unfinished", 1, 2)
        bars.stage("Next")
    assert all(
        text in page.getvalue() for text in ("▸ Attack [gmi]", "note", "warning: warning", "a [label]", "▸ Next")
    )


def test_without_a_terminal_progress_is_lines_on_standard_error(capsys):
    with watching(Session()) as sink:
        sink.stage("Loading")
    assert capsys.readouterr() == ("", "== Loading\n")


def test_quiet_is_quiet_but_logs(tmp_path, capsys):
    with watching(Session(verbosity=-1, log_file=tmp_path / "log")) as sink:
        sink.stage("Loading")
        sink.warn("overlap")
    assert capsys.readouterr() == ("", "")
    assert [line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()] == [
        "== Loading",
        "warning: overlap",
    ]


def test_ci_gets_lines_even_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("CI", "true")
    with watching(Session()) as sink:
        sink.stage("Loading")
    assert "== Loading" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
