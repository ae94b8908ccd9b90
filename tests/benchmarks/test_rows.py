import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mi_audit.core.arithmetic import Decision
from mi_audit.nn.precision import has_native_bf16
from tests.benchmarks import __main__, cases, machine, paired, prefix, rows
from tests.benchmarks.paired import Timing
from tests.benchmarks.rows import _gate, _speed
from tests.benchmarks.worlds import World

FINE = Decision("descend", "bf16", "bf16", 0.99)
REFUSED = Decision("descend", "bf16", "32", 0.47, "too far apart")


@pytest.fixture(autouse=True)
def threads():
    """The command sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def engine(precision, *decisions):
    return SimpleNamespace(
        precision=precision, batch=4, run=lambda size, *, run: run.decisions.extend(decisions) or size
    )


@pytest.mark.parametrize(
    ("precision", "decisions", "used", "reason"),
    [("bf16", (FINE,), "bf16", ""), ("bf16", (FINE, REFUSED), "32", "too far apart"), ("32", (), "32", "")],
)
def test_the_gate_of_the_networks_that_are_timed_is_asked(precision, decisions, used, reason):
    assert _gate(cases.quick()["gmi"], engine(precision, *decisions)) == {"used": used, "reason": reason}


def test_networks_that_learned_nothing_are_timed_in_what_is_asked_for():
    case = cases.quick()["ppa"]
    assert case.timed.world.images == 0
    assert _gate(case, engine("bf16", REFUSED)) == {"used": "bf16", "reason": ""}
    trained = replace(case, timed=replace(case.timed, world=replace(case.timed.world, images=9)))
    assert _gate(trained, engine("bf16", REFUSED))["used"] == "32"


@pytest.mark.parametrize(("used", "share"), [("bf16", 0.125), ("32", 0.25)])
def test_the_share_of_a_refused_row_is_of_the_ceiling_of_what_it_computed_in(monkeypatch, used, share):
    case = cases.quick()["gmi"]
    needed = 8e12
    monkeypatch.setattr(rows, "_operations", lambda *_: {})
    monkeypatch.setattr(rows, "_memory", lambda *_: 0.0)
    monkeypatch.setattr(rows, "_scaling", lambda *_: {})
    monkeypatch.setattr(machine, "useful_operations", lambda *_: needed)
    monkeypatch.setattr(machine, "ceiling", lambda _device, dtype, _now: {torch.float32: 32e12}.get(dtype, 64e12))
    timing = Timing("cpu", {"reference": (2.0,), "bf16": (1.0,)}, {}, (0.0, 0.0))
    options = SimpleNamespace(device="cpu", now=None)
    found = _speed(case, None, None, {"bf16": engine("bf16")}, {"bf16": used}, timing, options)["bf16"]
    assert (found["mfu"], found["ceiling_gflops"]) == (share, 8e3 / share)
    assert found["reference_mfu"] == 0.125  # half as fast, in single precision


def test_the_command_writes_a_row_per_precision_for_scripts(tmp_path, monkeypatch, capsys):
    world = World(prior="gan", size=32, target="cnn", fed=32, classes=4, images=0)
    case = cases.quick()["gmi"]
    small = replace(case.timed, world=world, classes=4, batch=2, settings={"steps": 4, "restarts": 1})
    tiny = replace(case, timed=small, judged=small, scaled=())
    monkeypatch.setattr(cases, "quick", lambda: {"gmi": tiny, "other": tiny})
    monkeypatch.setattr(machine, "ceiling", lambda *_: 1e12)  # takes seconds
    monkeypatch.setattr(paired.gc, "collect", lambda: None)  # does so, too, among all that the tests have loaded
    file = tmp_path / "rows.json"
    wanted = ["--quick", "--case", "gmi", "--json", str(file), "--cache", str(tmp_path), "--device", "cpu"]
    assert __main__.main([*wanted, "--clock", "cpu", "--repetitions", "3"]) == 0
    rows = json.loads(file.read_text())
    assert [row["precision"] for row in rows] == ["32", *(["bf16"] if has_native_bf16("cpu") else [])]
    for row in rows:
        assert (row["case"], row["clock"], row["repetitions"]) == ("gmi", "cpu", 3)
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["ratio_min"] == pytest.approx(
            min(a / b for a, b in zip(row["seconds"]["reference"], row["seconds"][row["precision"]], strict=True))
        )
        assert isinstance(row["quality_ok"], bool) and row["quality"]["same_work"] and row["memory_per_image"] > 0
    assert rows[0]["quality"]["cosine"] > 0.999 and rows[0]["quality_ok"]
    assert "gmi" in capsys.readouterr().out


def test_rows_that_are_written_first_survive_what_comes_after(tmp_path, monkeypatch):
    def broken(name, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "rows_of", lambda name, *_: [{"case": name}])
    monkeypatch.setattr(prefix, "row", broken)
    file = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        __main__.main(["--quick", "--json", str(file), "--threads", "1", "--clock", "cpu", "--device", "cpu"])
    assert [row["case"] for row in json.loads(file.read_text())] == list(cases.quick())
