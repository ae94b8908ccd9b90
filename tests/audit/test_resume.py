"""A run that is killed and typed again must leave the bytes of one that was not."""

import functools
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from mi_audit.audit.plan import DecisionPlan, Plan
from mi_audit.audit.settings import plan_to_json
from mi_audit.store.files import canonical_json
from tests.world import defend_plan, digit_plan

# Every result reaches its place by `os.replace`: the run dies by its own hand just before or after one of them.
# What is imported is imported once: every line asks for a run in a process of its own, and gets its exit code.
SCRIPT = """
import json, os, sys
from mi_audit.audit.attack import run_attack
from mi_audit.audit.defend import run_defense
from mi_audit.audit.settings import plan_from_json

for line in sys.stdin:
    process = os.fork()
    if process == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    os._exit(0)

os.dup2(2, 1)
plan, signal, moment, left, where = json.loads(line)
plan, replace = plan_from_json(plan), os.replace

def replace_and_die(source, target):
    global left
    left -= os.path.basename(os.path.dirname(target)) == where
    if left < 0 and moment == "before":
        os.kill(os.getpid(), signal)
    replace(source, target)
    if left < 0 and moment == "after":
        os.kill(os.getpid(), signal)

if signal:
    os.replace = replace_and_die
(run_defense if plan.model.ref.startswith("built-in") else run_attack)(plan)
"""


def plan_for(kind: str, digits: Path, out: Path, cache: Path) -> Plan:
    """What the command of that kind does in the small world."""
    if kind == "defend":
        plan = defend_plan(out, cache)
        return replace(plan, attacks=plan.attacks[:1])
    plan = digit_plan(digits, out, cache)
    if kind == "attack":
        return plan
    decision = DecisionPlan(policy="audit-v1", tau=0.98, sequential=True)
    return replace(
        plan, seeds=1, classes="all", attacks=plan.attacks[:1], decision=decision, positive_control=False,
        metrics=("exposure",),
    )  # fmt: skip


class Terminal:
    """Where commands are typed one after the other; two of them order what is hashed in two ways."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, kind: str, digits: Path, out: Path, cache: Path, **death: object) -> int:
        """The exit code of the command; `how`, `moment`, `kept` and `where` say when it dies."""
        usual = {"how": 0, "moment": "", "kept": 0, "where": "jobs"}
        plan = plan_to_json(plan_for(kind, digits, out, cache))
        self.process.stdin.write(canonical_json([plan, *(usual | death).values()]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def terminals() -> Iterator[tuple[Terminal, Terminal]]:
    """One for what is killed or was never disturbed, one in which it is typed again."""
    with ExitStack() as stack:
        yield tuple(Terminal(stack.enter_context(started(seed))) for seed in "12")


def started(seed: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONHASHSEED": seed}, text=True,
    )  # fmt: skip


def content(out: Path) -> dict[str, str]:
    """Hash of every file but clock time, plan (it names the folder) and locks."""
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file() and (file.suffix in (".safetensors", ".png") or file.name == "result.json")
    }


@pytest.fixture(scope="module")
def whole(digits, cache, tmp_path_factory, terminals) -> Callable[[str], Path]:
    """The folder of an undisturbed run of that kind."""

    @functools.cache
    def folder(kind: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / "run"
        assert terminals[0].run(kind, digits, out, cache) == 0
        return out

    return folder


@pytest.mark.parametrize(
    ("how", "moment", "kept"),
    [(signal.SIGKILL, "before", 0), (signal.SIGKILL, "after", 1), (signal.SIGINT, "after", 3)],
)
def test_a_killed_attack_resumes_to_the_same_bytes(digits, cache, tmp_path, whole, terminals, how, moment, kept):
    out, (first, again) = tmp_path / "run", terminals
    assert first.run("attack", digits, out, cache, how=int(how), moment=moment, kept=kept) != 0
    assert len(list(out.glob("jobs/*.safetensors"))) == kept + (moment == "after")
    assert not (out / "result.json").exists()
    assert again.run("attack", digits, out, cache) == 0
    assert content(out) == content(whole("attack"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how", "where", "moment", "kept"),
    [
        ("defend", signal.SIGKILL, "models", "before", 1),  # the sidecar of the twin's weights is there, they are not
        ("defend", signal.SIGKILL, "jobs", "after", 2),
        ("defend", signal.SIGINT, "jobs", "before", 1),
        ("attack --sequential", signal.SIGKILL, "jobs", "before", 0),
        ("attack --sequential", signal.SIGKILL, "jobs", "after", 2),
        ("attack --sequential", signal.SIGINT, "jobs", "after", 1),
    ],
)
def test_other_killed_commands_do_so_too(digits, cache, tmp_path, whole, terminals, kind, how, where, moment, kept):
    out, (first, again) = tmp_path / "run", terminals
    assert first.run(kind, digits, out, cache, how=int(how), where=where, moment=moment, kept=kept) != 0
    assert not (out / "result.json").exists()
    files = list((out / where).glob("*.safetensors")) if where == "jobs" else []
    stamps = {file: file.stat().st_mtime_ns for file in files}
    assert len(files) == (kept + (moment == "after") if where == "jobs" else 0)
    assert again.run(kind, digits, out, cache) == 0
    assert content(out) == content(whole(kind)) and len(content(out)) > 2
    assert {file: file.stat().st_mtime_ns for file in files} == stamps
