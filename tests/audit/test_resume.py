"""A run that is killed and typed again must leave the bytes of one that was not."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mi_audit.audit.settings import plan_to_json
from mi_audit.store.files import canonical_json
from tests.world import digit_plan

SCRIPT = """
import json, sys
from mi_audit.audit.attack import run_attack
from mi_audit.audit.settings import plan_from_json
run_attack(plan_from_json(json.loads(sys.argv[1])))
"""


def command(digits: Path, out: Path, cache: Path) -> list[str]:
    plan = plan_to_json(digit_plan(digits, out, cache))
    return [sys.executable, "-c", SCRIPT, canonical_json(plan)]


def content(out: Path) -> dict[str, str]:
    """Hash of every file but clock time, plan (it names the folder) and locks."""
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file() and (file.suffix in (".safetensors", ".png") or file.name == "result.json")
    }


@pytest.mark.parametrize(("after_jobs", "how"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (4, signal.SIGINT)])
def test_a_killed_run_resumes_to_the_same_bytes(digits, cache, tmp_path, whole_run, after_jobs, how):
    out = tmp_path / "run"
    process = subprocess.Popen(command(digits, out, cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("jobs/*.safetensors"))) <= after_jobs:
        time.sleep(0.002)
    os.kill(process.pid, how)
    process.wait()
    assert process.returncode != 0
    done = len(list(out.glob("jobs/*.safetensors")))
    assert after_jobs < done < len(list(whole_run.glob("jobs/*.safetensors")))
    subprocess.run(command(digits, out, cache), check=True)
    assert content(out) == content(whole_run)


@pytest.fixture(scope="module")
def whole_run(digits, cache, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(digits, out, cache), check=True)
    return out
