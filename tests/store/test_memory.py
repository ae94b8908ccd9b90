from pathlib import Path

from mi_audit.store.memory import available

GROUP = "sys/fs/cgroup"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable: 1000 kB\n"}


def test_the_machine_says_what_could_be_freed(tmp_path: Path):
    assert available(write(tmp_path, MACHINE)) == 1_024_000


def test_a_control_group_that_has_less_wins_and_its_cache_counts_as_free(tmp_path: Path):
    group = {
        "proc/self/cgroup": "0::/\n",
        f"{GROUP}/memory.max": "9000\n",
        f"{GROUP}/memory.current": "5000\n",
        f"{GROUP}/memory.stat": "anon 1\ninactive_file 700\nactive_file 9\n",
    }
    assert available(write(tmp_path, MACHINE | group)) == 4700


def test_the_tightest_group_on_the_way_up_counts_and_no_limit_is_none(tmp_path: Path):
    groups = {
        "proc/self/cgroup": "0::/a/b\n",
        f"{GROUP}/a/b/memory.max": "max\n",
        f"{GROUP}/a/b/memory.current": "10\n",
        f"{GROUP}/a/memory.max": "500\n",
        f"{GROUP}/a/memory.current": "800\n",  # over it already
    }
    assert available(write(tmp_path, MACHINE | groups)) == 0
    (tmp_path / GROUP / "a/memory.max").write_text("max\n")
    assert available(tmp_path) == 1_024_000


def test_groups_of_the_first_version_are_read_too(tmp_path: Path):
    group = {
        f"{GROUP}/memory/memory.limit_in_bytes": "3000",
        f"{GROUP}/memory/memory.usage_in_bytes": "2000",
        f"{GROUP}/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
    }
    assert available(write(tmp_path, MACHINE | group)) == 1050


def test_this_machine_says_something_or_nothing(tmp_path: Path):
    assert available() is None or available() > 0
    assert available(tmp_path) is None or available(tmp_path) > 0  # without files the system is asked
