"""A run that is killed and typed again must leave the bytes of one that was not."""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mi_audit.audit.settings import plan_to_json
from mi_audit.store.files import canonical_json
from tests.world import digit_plan

# Every result reaches its place by `os.replace`: the run dies by its own hand just before or after one of them.
SCRIPT = """
import json, os, sys
from mi_audit.audit.attack import run_attack
from mi_audit.audit.settings import plan_from_json

plan, signal, moment, left = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
replace = os.replace

def replace_and_die(source, target):
    global left
    left -= "jobs" in str(target)
    if left < 0 and moment == "before":
        os.kill(os.getpid(), signal)
    replace(source, target)
    if left < 0 and moment == "after":
        os.kill(os.getpid(), signal)

if signal:
    os.replace = replace_and_die
run_attack(plan_from_json(plan))
"""


def command(digits: Path, out: Path, cache: Path, *, how: int = 0, moment: str = "", kept: int = 0) -> list[str]:
    plan = plan_to_json(digit_plan(digits, out, cache))
    return [sys.executable, "-c", SCRIPT, canonical_json(plan), str(int(how)), moment, str(kept)]


def content(out: Path) -> dict[str, str]:
    """Hash of every file but clock time, plan (it names the folder) and locks."""
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file() and (file.suffix in (".safetensors", ".png") or file.name == "result.json")
    }


@pytest.mark.parametrize(
    ("how", "moment", "kept"),
    [(signal.SIGKILL, "before", 0), (signal.SIGKILL, "after", 1), (signal.SIGINT, "after", 3)],
)
def test_a_killed_run_resumes_to_the_same_bytes(digits, cache, tmp_path, whole_run, how, moment, kept):
    out = tmp_path / "run"
    killed = subprocess.run(
        command(digits, out, cache, how=how, moment=moment, kept=kept),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert killed.returncode != 0
    assert len(list(out.glob("jobs/*.safetensors"))) == kept + (moment == "after")
    assert not (out / "result.json").exists()
    subprocess.run(command(digits, out, cache), check=True)
    assert content(out) == content(whole_run)


@pytest.fixture(scope="module")
def whole_run(digits, cache, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(digits, out, cache), check=True)
    return out
