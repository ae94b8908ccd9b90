"""Faults injected into whole runs on a tiny digits world: `python -m tests.faults` prints what survived.

Every trial types a command in a process of its own, injects one fault, types the command again until it ends, and
compares `result.json` and all jobs with those of a run that nobody disturbed.
"""

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from mi_audit.audit import executor_processes, runner
from mi_audit.audit.attack import run_attack
from mi_audit.audit.defend import run_defense
from mi_audit.audit.plan import AttackPlan, DecisionPlan, Plan
from mi_audit.cli.console import watching
from mi_audit.cli.finish import verdict_code
from mi_audit.cli.session import Boundary, Session, begin, current
from mi_audit.nn.descent import Descent
from mi_audit.store import files
from mi_audit.store.times import read_times
from tests.world import SMOKE, defend_plan, digit_model, digit_plan

ROOT = Path(__file__).parents[1]
COMMANDS = ("attack", "attack --sequential", "defend")
MOST = 4  # times that a command is typed again


@dataclass
class World:
    """The model, its plans, and what an undisturbed run of each leaves.

    Attributes:
        seconds, writes: How long that run takes, and how many files it writes.
        code: Its exit code.
    """

    base: Path
    seconds: dict[str, float] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    code: dict[str, int] = field(default_factory=dict)

    def plan(self, command: str, out: Path) -> Plan:
        cache = self.base / "cache"
        if command == "defend":
            plan = defend_plan(out, cache)
            return replace(plan, attacks=plan.attacks[:1], metrics=("attack-accuracy",))
        plan = replace(digit_plan(self.base / "digits.safetensors", out, cache), seeds=1)
        if command == "attack":
            return replace(plan, metrics=("attack-accuracy",))
        decision = DecisionPlan(policy="audit-v1", tau=0.98, sequential=True)
        gmi = (AttackPlan(name="gmi", settings=SMOKE["gmi"]),)
        return replace(
            plan, classes="all", attacks=gmi, decision=decision, positive_control=False, metrics=("exposure",)
        )

    def whole(self, command: str) -> Path:
        return self.base / f"whole-{command.replace(' ', '')}"


@dataclass
class Row:
    """One line of the report.

    Attributes:
        codes: How often the disturbed command ended how.
        kept: Jobs that were finished before the command was typed again; all of them were still there after it.
        survived: Trials that ended in the same bytes as the undisturbed run, with every finished job kept.
        broken: What went wrong in the others.
    """

    command: str
    fault: str
    trials: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    survived: int = 0
    broken: list[str] = field(default_factory=list)


Prepare = Callable[[random.Random, World, str], None]


def type_command(world: World, command: str, out: Path, prepare: Callable[[], None], devices: int = 1) -> int:
    """The process id of a child that runs the command."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        with (out.parent / f"{out.name}.log").open("a") as log, redirect_stderr(log), redirect_stdout(log):
            begin(Session(run=out))
            prepare()
            code = run(replace(world.plan(command, out), devices=devices))
    finally:
        os._exit(code)


def run(plan: Plan) -> int:
    """The exit code of the program, which prints what it prints."""
    try:
        with Boundary(current()), watching(current()) as progress:
            result = (run_defense if plan.model.ref.startswith("built-in") else run_attack)(plan, progress)
            return verdict_code(result, False)
    except SystemExit as left:
        return int(left.code or 0)
    except RuntimeError as left:  # Typer's way to leave with a code
        return int(left.exit_code)  # type: ignore[attr-defined]


def wait(child: int) -> str:
    status = os.waitpid(child, 0)[1]
    return f"killed by {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def content(out: Path) -> dict[str, bytes]:
    """The bytes of every job and of the result."""
    found = {path.name: path.read_bytes() for path in (out / "jobs").glob("*.safetensors")}
    return found | {path.name: path.read_bytes() for path in out.glob("result.json")}


# ---------------------------------------------------------------------------------------------- what is injected


def nothing(random: random.Random, world: World, command: str) -> None: ...


def full_disk(random: random.Random, world: World, command: str) -> None:
    """From some write on, the disk takes half of it and then nothing."""
    left, opened = random.randrange(world.writes[command]), os.fdopen

    class Full:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            nonlocal left
            left -= 1
            if left >= 0:
                return self._file.write(data)
            self._file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.os.fdopen = lambda *given: Full(opened(*given))


def in_job(what: Callable[[], BaseException], once: bool = True) -> Prepare:
    """Some job raises."""

    def prepare(random: random.Random, world: World, command: str) -> None:
        doomed, done = random.randrange(jobs_of(world, command)), runner.Task.__call__
        count = 0

        def call(task, job, on_step):
            nonlocal count
            count += 1
            if count - 1 == doomed:
                raise what()
            return done(task, job, on_step)

        runner.Task.__call__ = call

    return prepare


def lost_device(random: random.Random, world: World, command: str) -> None:
    in_job(lambda: RuntimeError("CUDA error: unspecified launch failure"))(random, world, command)


def nan_in_a_class(random: random.Random, world: World, command: str) -> None:
    """The losses of class 3 are NaN."""
    found = Descent._gradient

    def broken(search, latents, labels, *given):
        identity, gradient = found(search, latents, labels, *given)
        return identity.masked_fill(labels == 3, float("nan")), gradient

    Descent._gradient = broken


def poisoned_worker(random: random.Random, world: World, command: str) -> None:
    """In one process a job ends in a device-side assert, after which nothing computes there any more."""
    begin, main = executor_processes.START.rsplit("; main(", 1)
    marker, number = world.base / f"poisoned-{os.getpid()}", random.randrange(2)
    executor_processes.START = (
        f"{begin}; from tests.faults import poison; poison({str(marker)!r}, {number}); main({main}"
    )


def poison(marker: str, number: int) -> None:
    """In this process, job `number` and all after it fail like on a device that has failed; once for every marker."""
    done, count, poisoned = runner.Task.__call__, 0, False

    def call(task, job, on_step):
        nonlocal count, poisoned
        if count == number:
            with suppress(FileExistsError):
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                poisoned = True
        count += 1
        if poisoned:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return done(task, job, on_step)

    runner.Task.__call__ = call


def full_log(random: random.Random, world: World, command: str) -> None:
    """The log file is on a disk without room."""
    current().log_file = Path("/dev/full")


def crashing_worker(random: random.Random, world: World, command: str) -> None:
    """A process is killed in some job."""
    left, give = random.randrange(jobs_of(world, command)), executor_processes.Worker.give

    def deadly(worker, order):
        nonlocal left
        give(worker, order)
        if worker.job is not None:
            left -= 1
            if left == -1:
                worker.process.kill()

    executor_processes.Worker.give = deadly


def jobs_of(world: World, command: str) -> int:
    return sum(name != "result.json" for name in content(world.whole(command)))


FAULTS: dict[str, tuple[Prepare, int]] = {
    "kill -9": (nothing, signal.SIGKILL),
    "Ctrl-C": (nothing, signal.SIGINT),
    "terminated": (nothing, signal.SIGTERM),
    "disk full, half a file written": (full_disk, 0),
    "out of memory in a job": (in_job(lambda: torch.OutOfMemoryError("CUDA out of memory")), 0),
    "NaN in a class": (nan_in_a_class, 0),
    "device lost": (lost_device, 0),
    "worker killed, --devices 2": (crashing_worker, 0),
    "device-side assert, --devices 2": (poisoned_worker, 0),
    "half a job file": (nothing, 0),
    "timing.json damaged": (nothing, 0),
    "log file on a full disk": (full_log, 0),
    "two runs at once": (nothing, 0),
}


def trial(world: World, row: Row, chance: random.Random, out: Path) -> None:
    """Inject the fault of the row once and see what is left."""
    prepare, signum = FAULTS[row.fault]
    devices = 2 if "--devices 2" in row.fault else 1
    whole = content(world.whole(row.command))
    children = [
        type_command(world, row.command, out, lambda: prepare(chance, world, row.command), devices)
        for _ in range(2 if row.fault == "two runs at once" else 1)
    ]
    if signum:
        wait_until(chance, world, row.command, out)
        os.kill(children[0], signum)
    codes = [wait(child) for child in children]
    row.codes.update(codes)
    row.trials += 1
    if row.fault == "half a job file":
        half = chance.choice(sorted((out / "jobs").glob("*.safetensors")))
        half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
        whole_jobs = {name: data for name, data in content(out).items() if name not in (half.name, "result.json")}
        stamps = {name: (out / "jobs" / name).stat().st_mtime_ns for name in whole_jobs}
    else:
        stamps = {path.name: path.stat().st_mtime_ns for path in (out / "jobs").glob("*.safetensors")}
    times = out / "timing.json"
    if row.fault == "timing.json damaged":
        times.write_bytes(times.read_bytes()[: times.stat().st_size // 2])
    row.kept += len(stamps)
    for _ in range(MOST):
        if wait(type_command(world, row.command, out, lambda: None)) == f"exit {world.code[row.command]}":
            break
    broken = [f"{name} differs" for name, data in whole.items() if content(out).get(name) != data]
    broken += [
        f"{name} was made again" for name, at in stamps.items() if (out / "jobs" / name).stat().st_mtime_ns != at
    ]
    broken += [f"{path.name} was left" for place in (out, world.base / "cache") for path in place.rglob(".*.tmp")]
    broken += [] if read_times(out) else ["no times were written"]
    usual = world.code[row.command]
    broken += [f"ended with {code}" for code in codes if code not in expected(row.command, row.fault, usual)]
    row.survived += not broken
    row.broken += broken


def wait_until(chance: random.Random, world: World, command: str, out: Path) -> None:
    """Until some moment of the run: any, or shortly after some job."""
    begun, patience = time.monotonic(), world.seconds[command]
    if chance.random() < 0.4:
        time.sleep(chance.uniform(0, patience))
        return
    finished = chance.randrange(jobs_of(world, command))
    while len(list((out / "jobs").glob("*.safetensors"))) <= finished and time.monotonic() < begun + 2 * patience:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.1))


def expected(command: str, fault: str, code: int) -> set[str]:
    """How a disturbed command may end; one that was disturbed too late ends as usual."""
    usual = f"exit {code}"
    ways = {
        "kill -9": {"killed by 9", usual},
        "Ctrl-C": {"exit 130", usual},
        # before the program has begun, the signal is the system's
        "terminated": {"exit 130", "killed by 15", usual},
        "worker killed, --devices 2": {usual},
        "device-side assert, --devices 2": {usual},
        "half a job file": {usual},
        "timing.json damaged": {usual},
        "log file on a full disk": {usual},
        "two runs at once": {"exit 2", usual},
    }
    # the next look of a sequential run does a failed job again, and it may not come to the class that fails
    spared = command == "attack --sequential" and fault in ("out of memory in a job", "NaN in a class")
    return ways.get(fault, {"exit 4", usual} if spared else {"exit 4"})


def build(base: Path, commands: Sequence[str]) -> World:
    """Train the model, and let every command run once undisturbed, and once more with its caches warm."""
    world = World(base)
    digit_model(base)
    for command in commands:
        for out in (base / "cold", world.whole(command)):
            begun = time.monotonic()
            code = wait(type_command(world, command, out, lambda: None))
            world.seconds[command] = time.monotonic() - begun
            world.code[command] = int(code.removeprefix("exit "))
            if out.name == "cold":
                shutil.rmtree(out)
        world.writes[command] = sum(path.is_file() for path in world.whole(command).rglob("*"))
    return world


def page(rows: Sequence[Row], trials: int, seed: int) -> str:
    """A part of a Markdown page: what was done, what came of it, and the table."""
    trialled, survived = sum(row.trials for row in rows), sum(row.survived for row in rows)
    return f"""{trialled} faults were injected into whole runs on a tiny digits world, {trials} of every kind into every
command. {survived} of them ended, after the command was typed again, in the same bytes as a run that nobody disturbed,
with every finished job kept and no temporary file left. `python -m tests.faults --trials {trials} --seed {seed} --page`
prints this part anew.

{report(rows)}"""


def report(rows: Sequence[Row]) -> str:
    """The table, as Markdown."""
    lines = [
        "| command | fault | injected | it ended with | finished jobs, all kept | same bytes after typing it again |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ends = ", ".join(f"{code} ({times})" for code, times in sorted(row.codes.items()))
        lines.append(
            f"| `{row.command}` | {row.fault} | {row.trials} | {ends} | {row.kept} | {row.survived} of {row.trials} |"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--trials", type=int, default=3, help="injections of every fault into every command")
    parser.add_argument("--command", action="append", choices=COMMANDS, help="only this command; may be repeated")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this fault; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", action="store_true", help="print a part of a Markdown page around the table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON, too")
    chosen = parser.parse_args(words)
    torch.set_num_threads(1)  # a process with one thread may be forked
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        commands = chosen.command or COMMANDS
        world = build(Path(folder), commands)
        for command in commands:
            for fault in chosen.fault or FAULTS:
                rows.append(row := Row(command, fault))
                for number in range(chosen.trials):
                    chance = random.Random(f"{chosen.seed} {command} {fault} {number}")
                    out = Path(folder) / f"trial-{len(rows)}-{number}"
                    trial(world, row, chance, out)
                    if row.broken:
                        log = out.with_name(f"{out.name}.log").read_text()
                        sys.stderr.write("\n".join([*row.broken, log]))
                    shutil.rmtree(out, ignore_errors=True)
    sys.stdout.write((page(rows, chosen.trials, chosen.seed) if chosen.page else report(rows)) + "\n")
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    return int(any(row.broken for row in rows))


if __name__ == "__main__":
    sys.exit(main())
