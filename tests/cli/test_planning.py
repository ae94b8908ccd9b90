import json
import subprocess
import sys

import pytest

from mi_audit.store.results import write_result
from tests.report import sample


def planned(cli, *words):
    done = cli("plan", "--json", *words)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_people_by_true_share_and_by_exposed_ones(cli):
    found = planned(cli, "--threshold", "0.1", "--power", "0.8")
    people = {row["true_share"]: row["people"] for row in found["by_rate"]}
    assert people == {0.0: 29, 0.01: 46, 0.02: 61, 0.03: 89, 0.05: 203, 0.07: 593, 0.08: 1365}
    assert [row["people"] for row in found["by_exposed"]] == [29, 46, 61, 76, 89, 103]
    assert found["by_rate"][2]["exposed_allowed"] == 2 and found["by_rate"][2]["passes"] == 0.8769


def test_a_share_a_finite_set_and_a_verifier_that_misses_some(cli):
    assert [row["people"] for row in planned(cli, "--rate", "0.02", "--power", "0.9")["by_rate"]] == [89]
    assert planned(cli, "--classes-total", "530")["by_exposed"][0]["people"] == 28
    assert planned(cli, "--sensitivity", "0.9")["by_exposed"][0]["people"] == 32
    assert planned(cli, "--classes-total", "10000000")["by_exposed"][0]["people"] == 29


def test_only_shares_below_the_threshold_are_listed(cli):
    assert [row["true_share"] for row in planned(cli, "--threshold", "0.02")["by_rate"]] == [0.0, 0.01]


def test_what_no_number_decides_is_said(cli):
    done = cli("plan", "--rate", "0.1")
    assert done.exit_code == 0 and "no number is enough" in done.stdout
    assert planned(cli, "--rate", "0.1")["by_rate"] == [
        {"true_share": 0.1, "people": None, "exposed_allowed": None, "passes": None}
    ]


def test_the_table_for_people(cli):
    text = cli("plan", "--classes-total", "530").stdout
    assert "People of 530 to attack, to pass with probability 0.8" in text
    assert any(line.split() == ["2.0%", "59", "2", "88.7%"] for line in text.splitlines())


@pytest.mark.parametrize("words", [("--power", "1"), ("--rate", "-0.1"), ("--threshold", "0"), ("--sensitivity", "0")])
def test_impossible_numbers_exit_2(cli, words):
    done = cli("plan", *words)
    assert done.exit_code == 2 and f"expected {words[0]}" in done.stderr


@pytest.fixture
def run(tmp_path):
    """A run of 5 people: 50 s in jobs, 10 s of measuring, 20 s that do not depend on them."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_result(folder / "result.json", sample.audit())
    stages = {"load": 5.0, "prior gmi-gan": 15.0, "gmi": 41.0, "control:random-prior": 9.0, "measure": 10.0}
    jobs = {"gmi-s0-c0000-0004-ab": 41.0, "control-random-prior-s0-c0000-0004-cd": 9.0}
    (folder / "timing.json").write_text(json.dumps({"stages": stages, "jobs": jobs, "total_seconds": 80.0}))
    return folder


def test_the_time_follows_from_a_run_like_it(cli, run):
    found = planned(cli, "--like", "run", "--rate", "0.02")
    assert found["like"] == {
        "run": "run", "device": "cpu", "people": 5, "seconds_per_person": 12.0, "seconds_once": 20.0,
    }  # fmt: skip
    assert [(row["people"], row["seconds"]) for row in found["by_rate"]] == [(61, 20.0 + 61 * 12.0)]
    assert found["by_exposed"][0]["seconds"] == 20.0 + 29 * 12.0
    text = cli("plan", "--like", "run", "--rate", "0.02").stdout
    assert "12 min 32 s" in text and "20 s once and 12 s for each of its 5 people" in text
    assert planned(cli, "--like", "run", "--rate", "0.1")["by_rate"][0]["seconds"] is None


def test_without_a_run_it_says_how_to_get_the_time(cli):
    text = cli("plan").stdout
    assert "--like runs/latest" in text and "--dry-run" in text
    assert planned(cli)["like"] is None


def test_a_run_without_times_exits_2(cli, run):
    (run / "timing.json").unlink()
    done = cli("plan", "--like", "run")
    assert done.exit_code == 2 and "timing.json" in done.stderr
    assert cli("plan", "--like", "nowhere").exit_code == 2


def test_the_time_needs_no_torch(run):
    words = ["plan", "--like", str(run), "--json"]
    code = f"import sys; from mi_audit.cli.main import app; app({words!r}, standalone_mode=False); "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0
