"""The operators that a step of reference and engine is made of: python -m tests.benchmarks --profile ppa"""

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.cases import Case, Engine, Reference
from tests.benchmarks.machine import silenced
from tests.benchmarks.options import Options
from tests.benchmarks.paired import finish
from tests.benchmarks.steady import every_step_mixed
from tests.benchmarks.worlds import build_world

TOP = 15
NAME = 44  # characters of the name of an operator


def operators(case: Case, options: Options, trace: Path | None = None) -> str:
    """The operators that take the most time of their own, of the reference and of the engine in every precision.

    Args:
        trace: Chrome traces to write, which open as flame graphs in Perfetto or chrome://tracing: `x.json` becomes
            `x-reference.json`, `x-engine-32.json` and so on.
    """
    built = build_world(case.timed.world, options.cache, options.say)
    reference = Reference(case, built, options.device)
    runs: dict[str, Callable[[], object]] = {"reference": lambda: reference.run(case.timed)}
    for precision in options.precisions:
        engine = Engine(case, built, options.device, precision)
        runs[f"engine {precision}"] = lambda engine=engine: engine.run(case.timed)
    tables = []
    for name, run in runs.items():
        options.say(f"{name}: profiling")
        with every_step_mixed():
            seen = profiled(run, options.device)
        if trace is not None:
            file = trace.with_name(f"{trace.stem}-{name.replace(' ', '-')}.json")
            seen.export_chrome_trace(str(file))
        tables.append(table(name, seen, options.device))
    return side_by_side(tables)


def profiled(run: Callable[[], object], device: str) -> profile:
    """One call after a first one that does not count."""
    run()
    finish()
    on_device = [ProfilerActivity.CUDA] if device.startswith("cuda") else []
    with silenced(), profile(activities=[ProfilerActivity.CPU, *on_device]) as seen:
        run()
        finish()
    return seen


def table(name: str, seen: profile, device: str) -> list[str]:
    """The `TOP` operators: milliseconds of their own, share of all, calls."""
    kind = "device" if device.startswith("cuda") else "cpu"
    spent = {row.key: (getattr(row, f"self_{kind}_time_total") / 1e3, row.count) for row in seen.key_averages()}
    whole = sum(ms for ms, _ in spent.values())
    lines = [f"{name}: {whole:.0f} ms", f"{'operator':{NAME}} {'ms':>8} {'share':>6} {'calls':>6}"]
    for key, (ms, calls) in sorted(spent.items(), key=lambda item: -item[1][0])[:TOP]:
        lines.append(f"{key[:NAME]:{NAME}} {ms:8.1f} {ms / whole:6.1%} {calls:6d}")
    return lines


def side_by_side(tables: list[list[str]]) -> str:
    """Tables next to each other."""
    widths = [max(map(len, lines)) for lines in tables]
    rows = zip_longest(*tables, fillvalue="")
    return "\n".join(
        " | ".join(f"{line:{width}}" for line, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
