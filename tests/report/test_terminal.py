import io
from dataclasses import replace

import pytest
from rich.console import Console

from mi_audit.report.terminal import show
from tests.report import sample


def screen(result, width=100, **options):
    stream = io.StringIO()
    show(result, Console(file=stream, width=width, color_system=None), **options)
    return stream.getvalue()


@pytest.mark.parametrize("result", [sample.audit(verdict=sample.failing()), sample.comparison()])
@pytest.mark.parametrize("width", [100, 200])
def test_nothing_is_cut_at_100_columns(result, width):
    text = screen(result, width)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


def test_verdict_comes_first_and_the_page_last(tmp_path):
    text = screen(
        sample.audit(verdict=sample.failing()), timing={"total_seconds": 141.3}, page=tmp_path / "report.html"
    )
    assert text.split()[0] == "FAIL"
    assert "MI001: fails on attack_acc1 > 0.10" in text and "Took 2 min 21 s." in text
    assert "report.html" in text.rstrip().splitlines()[-1]


def test_attacks_stand_beside_their_control():
    lines = screen(sample.audit()).splitlines()
    assert any(line.startswith("PPA") and "68.0% [57.0, 79.0]" in line and "98.0%" in line for line in lines)
    assert any(line.startswith("control: random prior") and "12.0%" in line for line in lines)


def test_a_comparison_says_what_changed_and_what_it_cost():
    text = screen(sample.comparison())
    assert "less leakage" in text and "−15.0 [−24.0, −6.0]" in text  # noqa: RUF001 - a minus sign
    lines = text.splitlines()
    accuracy = next(place for place, line in enumerate(lines) if line.startswith("  accuracy"))
    assert lines[accuracy + 1].strip() == "worse"
    assert "Control, random pictures of the prior: top-1 12.0% [7.0, 17.0]." in text


def test_markup_in_names_is_shown_as_it_is():
    assert "[bold red]x[/]" in screen(sample.audit(warnings=("[bold red]x[/]",)))


def test_many_warnings_are_counted():
    assert "and 4 more in the report" in screen(sample.audit(warnings=tuple(f"warning {k}" for k in range(12))))


@pytest.mark.parametrize("width", [80, 100])
def test_exposure_and_every_control_fit_the_screen(width):
    text = screen(sample.trusted(), width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    lines = text.splitlines()
    ours = next(line for line in lines if line.startswith("PPA"))
    assert "20.0% [1.0, 60.0]" in ours and ("68.0% [57.0, 79.0]" in ours) == (width == 100)
    assert any(line.startswith("control: permuted") for line in lines)


def test_a_comparison_names_the_floor_of_the_prior_only():
    text = screen(sample.comparison(after=sample.trusted()))
    assert "Control, random pictures of the prior: top-1 12.0% [7.0, 17.0]." in text


@pytest.mark.parametrize("width", [80, 100])
def test_how_controls_were_made_is_said(width):
    floor = replace(sample.control(), name="control:counterfactual:ppa", note="Trained without them. " * 9)
    text = screen(sample.trusted(attacks=(sample.attack("ppa", 0.3), floor)), width)
    assert "Control counterfactual: Trained without them." in text and max(map(len, text.splitlines())) <= width
