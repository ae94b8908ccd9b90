import json

import pytest

from tests.benchmarks import __main__, table
from tests.benchmarks.quality import Quality


def row(**changes):
    line = Quality(
        cosine=0.99999, cosine_least=0.9991, rebatched=2e-7, moved=3e-8, same_work=True, loss=0.01, loss_reference=0.02,
        loss_slack=0.01, rate=0.8, rate_reference=0.75, rate_slack=0.1, images=40,
    )  # fmt: skip
    return {
        "case": "gmi", "precision": "32", "kind": "cpu", "device": "a processor", "torch": "2.15", "threads": 2,
        "clock": "wall", "load": [0.1, 1.7], "repetitions": 7, "ratio": 1.95, "ratio_min": 1.81, "ratio_max": 2.04,
        "goals": [1.8, 3.4, 3.5], "engine_s": 1.5, "reference_s": 2.9, "image_iterations_per_s": 62.5, "images": 30,
        "gigaflop_per_image_iteration": 6.67, "ceiling_gflops": 350.0, "mfu": 0.71, "reference_mfu": 0.36,
        "memory_per_image": 7.7e6, "reference_memory_per_image": 12.6e6, "scaling": {"10": 60.0, "30": 61.0},
        "rate_wanted": 0.67, "time_to_quality_s": 3.0, "reference_time_to_quality_s": 9.0,
        "time_to_quality_ratio": 3.0,
        "early_stop": {"seconds": 2.5, "rate": 0.7, "steps": 0.62, "seconds_without": 4.0, "rate_without": 0.8},
        **line.as_columns(), **changes,
    }  # fmt: skip


OTHER = {
    "case": "prefix-1", "title": "a prefix", "precision": "32", "clock": "wall", "ratio": 2.0, "ratio_min": 1.9,
    "ratio_max": 2.1, "reference_s": 4.0, "engine_s": 2.0, "quality_ok": True,
}  # fmt: skip


def test_numbers_and_goals_stand_beside_each_other():
    lines = table.ratios([row(), row(precision="bf16"), row(kind="cuda")])
    assert lines[1][:5] == ["gmi", "single", "1.95 [1.81..2.04]", "1.8", "1.50"]
    assert lines[0][7] == "images" and lines[1][6:8] == ["62.5", "30"]
    assert [line[3] for line in lines[1:]] == ["1.8", "3.4", "3.5"] and lines[1][-1] == "equal"


def test_a_row_alone_is_compared_before_and_after_the_step():
    assert table.qualities([row()])[1][3] == "2e-07, 3e-08"


def test_refused_bfloat16_is_said():
    asked = row(precision="bf16", gate={"used": "32", "reason": "the median cosine is 0.47"})
    assert table.ratios([asked])[1][1] == "bfloat16 (refused)"
    assert table.ratios([row(precision="bf16", gate={"used": "bf16", "reason": ""})])[1][1] == "bfloat16"


def test_unequal_results_are_said():
    bad = row()
    bad |= {"quality_ok": False, "quality": bad["quality"] | {"problems": ["rate 0.1 below 0.8"]}}
    assert table.ratios([bad])[1][-1] == "rate 0.1 below 0.8"


def test_what_was_not_measured_is_a_dash():
    assert table.courses([row(time_to_quality_s=None, time_to_quality_ratio=None)])[1][3:] == [
        "-", "9.00", "-", "4.0 s, 0.80", "2.5 s, 0.70", "62%",
    ]  # fmt: skip
    assert table.hardware([row(mfu=None)])[1][4] == "-"


def test_columns_are_aligned():
    assert table.aligned([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d"
    assert table.markdown([["a", "b"], ["c", "d"]]) == "| a | b |\n|---|---|\n| c | d |"


def test_the_terminal_shows_all_tables():
    shown = table.terminal([row(), OTHER])
    parts = ("1.95 [1.81..2.04]", "0.010 / 0.020", "71%", "10: 60.0, 30: 61.0", "a prefix")
    assert all(part in shown for part in parts)
    assert "\n\n\n" not in table.terminal([OTHER])


def test_the_page_is_made_of_the_rows(tmp_path, capsys):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row(), OTHER]))
    assert __main__.main(["--page", str(file)]) == 0
    page = capsys.readouterr().out
    assert page.startswith("# Performance\n") and page.endswith("|\n") and "{" not in page
    assert "a processor, torch 2.15, 2 threads, time that passed; load average at most 1.7." in page
    assert "| gmi | single | 1.95 [1.81..2.04] | 1.8 |" in page and "| a prefix | 2.00 [1.90..2.10] |" in page


@pytest.mark.parametrize("wrong", ["nothing", "gmi,"])
def test_an_unknown_case_is_named(wrong, capsys):
    assert __main__.main(["--quick", "--case", wrong]) == 2
    assert wrong in capsys.readouterr().err
