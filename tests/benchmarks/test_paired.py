import itertools

import pytest

from tests.benchmarks import paired


@pytest.fixture(autouse=True)
def collected(monkeypatch) -> list[str]:
    """Garbage is only said to be looked for: among all that the tests have loaded it takes a second each time."""
    said: list[str] = []
    monkeypatch.setattr(paired.gc, "collect", lambda: said.append("."))
    return said


def test_garbage_is_looked_for_before_every_call(collected):
    paired.measure({name: lambda name=name: collected.append(name) for name in "ab"}, 1, "wall")
    assert "".join(collected) == ".a.b" + ".a.b"


def test_candidates_take_turns_and_the_first_call_does_not_count():
    calls, ticks = [], itertools.count()
    runs = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timing = paired.measure(runs, 3, "wall", now=lambda: next(ticks))
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert timing.repetitions == 3 and timing.first == {"a": 1, "b": 1, "c": 1}


def test_a_ratio_is_taken_repetition_by_repetition():
    timing = paired.Timing("cpu", {"slow": (2.0, 9.0, 8.0), "fast": (1.0, 3.0, 4.0)}, {}, (0, 0))
    assert timing.ratio("slow", "fast") == (2.0, 2.0, 3.0)  # 2, 3, 2


def test_seconds_are_those_of_the_clock():
    passed = [0.0]

    def work(seconds):
        passed[0] += seconds

    runs = {"slow": lambda: work(4), "fast": lambda: work(2)}
    timing = paired.measure(runs, 4, "cpu", now=lambda: passed[0])
    assert timing.clock == "cpu" and timing.seconds == {"slow": (4,) * 4, "fast": (2,) * 4}


@pytest.mark.parametrize(("budget", "repetitions"), [(0.0, 3), (1e9, 7)])
def test_a_budget_leaves_three_repetitions(budget, repetitions):
    assert paired.measure({"a": lambda: None}, 7, "wall", budget).repetitions == repetitions


def test_the_processor_is_the_clock_of_a_busy_machine(monkeypatch):
    for used, device, threads, clock in ((0.1, "cpu", 2, "wall"), (3.0, "cpu", 2, "cpu"), (0.1, "cpu", 1, "cpu")):
        monkeypatch.setattr(paired, "cores_in_use", lambda used=used: used)
        assert paired.quiet_clock(device, threads) == clock
    assert paired.quiet_clock("cuda", 8) == "wall"


def test_the_cores_in_use_are_those_that_did_not_wait(monkeypatch, tmp_path):
    tick = paired.os.sysconf("SC_CLK_TCK")
    file = tmp_path / "stat"
    file.write_text(f"cpu  7 0 0 {10 * tick} {5 * tick} 0 0 0 0 0\ncpu0 1 2 3 4 5\n")

    def two_seconds_on(_seconds):  # of four cores one was idle for all of them and one for half
        file.write_text(f"cpu  9 0 0 {12 * tick} {6 * tick} 0 0 0 0 0\ncpu0 1 2 3 4 5\n")

    monkeypatch.setattr(paired, "CORES", file)
    monkeypatch.setattr(paired.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(paired.time, "sleep", two_seconds_on)
    assert paired.cores_in_use(2.0) == 2.5
    monkeypatch.setattr(paired, "CORES", tmp_path / "missing")
    monkeypatch.setattr(paired.os, "getloadavg", lambda: (0.7, 0.0, 0.0))
    assert paired.cores_in_use() == 0.7
