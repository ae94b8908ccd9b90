"""Time the attacks against plain loops: python -m tests.benchmarks --quick --json FILE"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # for both sides, as the program has it

import torch

from mi_audit.nn.precision import has_native_bf16
from tests.benchmarks import cases, operators, paired, prefix, table
from tests.benchmarks.options import Options
from tests.benchmarks.rows import rows_of


def main(arguments: list[str]) -> int:
    """Measure, write the rows, print the tables."""
    asked = _parser().parse_args(arguments)
    if asked.page:
        sys.stdout.write(table.page(json.loads(asked.page.read_text())))
        return 0
    threads = asked.threads or (1 if asked.clock == "cpu" else torch.get_num_threads())
    clock = asked.clock or paired.quiet_clock(asked.device, threads)
    torch.set_num_threads(1 if clock == "cpu" and not asked.threads else threads)
    known = cases.quick() if asked.quick else cases.full(asked.device)
    if asked.profile and asked.profile not in known:
        sys.stderr.write(f"expected a case among {', '.join(known)}, got {asked.profile}\n")
        return 2
    names = asked.case or [*known, *prefix.SPECS]
    if unknown := set(names) - set(known) - set(prefix.SPECS):
        sys.stderr.write(f"expected cases among {', '.join([*known, *prefix.SPECS])}, got {', '.join(unknown)}\n")
        return 2
    precisions = asked.precision or ["32", *(["bf16"] if has_native_bf16(asked.device) else [])]
    options = Options(
        device=asked.device,
        precisions=tuple(precisions),
        clock=clock,
        repetitions=asked.repetitions or (5 if asked.quick else 9),
        budget=asked.budget or (15.0 if asked.quick else float("inf")),
        seeds=1 if asked.quick else 3,
        cache=asked.cache,
        say=lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True),  # noqa: T201
    )
    if asked.profile:
        sys.stdout.write(operators.operators(known[asked.profile], options, asked.trace) + "\n")
        return 0
    rows = []
    for name in names:
        rows += rows_of(name, known[name], options) if name in known else [prefix.row(name, options)]
        if asked.json:  # after every case: an interrupted run keeps what it measured
            asked.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.stdout.write(table.terminal(rows) + "\n")
    return 0  # whether results are equal is in the rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="eight to ten minutes on two idle cores, less when run again"
    )
    parser.add_argument("--case", action="append", help="only this case; may be repeated")
    parser.add_argument("--profile", metavar="CASE", help="print the operators of one call of each side, time nothing")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="with --profile: Chrome traces, one file per side")
    parser.add_argument("--precision", action="append", choices=("32", "bf16"), help="only this precision")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--page", type=Path, metavar="JSON", help="print docs/performance.md from rows, measure nothing"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=("cpu", "wall"), help="default: wall on an idle machine or an accelerator")
    parser.add_argument("--threads", type=int, help="default: all on an idle machine, one when others compute")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--budget", type=float, help="seconds of paired timing per case, from three repetitions on")
    parser.add_argument("--cache", type=Path, help="folder of the trained networks; default: the user's cache")
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
