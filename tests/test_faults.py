"""Whole runs under injected faults; the table is printed by `python -m tests.faults`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import COMMANDS, FAULTS, ROOT


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_fault_is_survived_by_every_command(command: str, tmp_path: Path):
    words = [sys.executable, "-m", "tests.faults", "--trials", "1", "--command", command]
    done = subprocess.run(
        [*words, "--json", str(tmp_path / "rows.json")], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert done.returncode == 0 and {row["fault"] for row in rows} == set(FAULTS)
    assert all(row["survived"] == row["trials"] == 1 for row in rows)
