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
    for done in (0, 1, 2, 3):
        watch.now = 20.0 * done
        sink.step("fit", done, 3)
    assert lines == ["fit: 33%", "fit: 66%, about 20 s left", "fit: done in 1 min 0 s"]


def test_labels_have_clocks_of_their_own(plain):
    sink, lines, watch = plain
    sink.step("a", 0, 4)
    watch.now = 10.0
    sink.step("b", 0, 4)
    watch.now = 16.0
    sink.step("a", 1, 4)
    sink.step("b", 1, 4)
    assert lines == ["a: 25%"]
    watch.now = 32.0
    sink.step("a", 2, 4)
    assert lines[1:] == ["a: 50%, about 32 s left"]


def test_a_label_used_again_after_unfinished_work_starts_anew(plain):
    sink, lines, watch = plain
    for second in range(3):
        watch.now = float(second)
        sink.step("epoch 2/2", 30 * second, 100)
    for second in range(20):
        watch.now = 600.0 + second
        sink.step("epoch 2/2", 5 * second, 100)
    assert lines == ["epoch 2/2: 75%, about 5 s left"]


def test_a_stage_ends_what_went_before(plain):
    sink, lines, watch = plain
    sink.step("fit", 1, 100)
    sink.stage("Next")
    for second in range(17):
        watch.now = 600.0 + second
        sink.step("fit", second, 100)
    assert lines == ["== Next", "fit: 15%, about 1 min 25 s left"]


def test_a_label_that_starts_late_or_sleeps_is_foretold_by_its_own_pace(plain):
    sink, lines, watch = plain
    sink.step("fit", 80, 100)
    for second in range(10):
        watch.now = 500.0 + second
        sink.step("fit", 81 + second, 100)
    assert lines == ["fit: 81%"]
    watch.now = 516.0
    sink.step("fit", 97, 100)
    assert lines[1:] == ["fit: 97%, about 3 s left"]


def test_nothing_is_foretold_from_too_little(plain):
    sink, lines, watch = plain
    for second in (0, 8, 16, 32):
        watch.now = float(second)
        sink.step("fit", second // 8, 81)
    assert lines == ["fit: 2%", "fit: 4%"]
    watch.now = 48.0
    sink.step("fit", 6, 81)
    assert lines[-1] == "fit: 7%, about 10 min 0 s left"


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
