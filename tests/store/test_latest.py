import os
import subprocess
import sys

import pytest

from mi_audit.core.errors import ConfigError
from mi_audit.store.latest import MARKER, find_run, point_latest


def started(root, name, when):
    run = root / "runs" / name
    run.mkdir(parents=True)
    (run / MARKER).write_text("{}")
    os.utime(run / MARKER, (when, when))
    return run


def test_latest_follows_the_last_run(tmp_path):
    for name in ("a", "b"):
        point_latest(started(tmp_path, name, 1))
        assert (tmp_path / "runs" / "latest").resolve().name == name
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "b", "latest"]


def test_folder_and_result_mean_the_run(tmp_path):
    run = started(tmp_path, "a", 1)
    (run / "result.json").write_text("{}")
    assert find_run(str(run)) == find_run(str(run / "result.json")) == run


def test_without_links_latest_is_the_run_started_last(tmp_path):
    started(tmp_path, "z", 1)
    newest = started(tmp_path, "a", 2)
    assert find_run(str(tmp_path / "runs" / "latest")) == newest


def test_folders_the_user_chose_get_no_link(tmp_path):
    point_latest(tmp_path)
    assert not (tmp_path.parent / "latest").exists()


def test_real_folder_called_latest_is_left_alone(tmp_path):
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    point_latest(started(tmp_path, "a", 1))
    assert not (tmp_path / "runs" / "latest").is_symlink()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "latest"]


def test_missing_run_is_explained(tmp_path):
    for name in ("absent", "runs/latest"):
        with pytest.raises(ConfigError, match=rf"expected a run folder or a result\.json, got .*{name}"):
            find_run(str(tmp_path / name))


def test_finding_a_run_needs_no_torch():
    code = "import mi_audit.store.latest, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
