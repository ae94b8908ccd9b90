"""How much memory this process may still take."""

import os
from pathlib import Path


def available(root: Path = Path("/")) -> int | None:
    """Bytes that are free, or would be if asked for: of the machine, or of the control group when that has less.

    Args:
        root: Where the system shows its state.

    Returns:
        None on systems that do not say.
    """
    found = [_of_machine(root), _of_group(root)]
    return min((free for free in found if free is not None), default=None)


def _of_machine(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_group(root: Path) -> int | None:
    """What is left of the tightest limit on the way up from the control group of this process."""
    groups = root / "sys/fs/cgroup"
    left = [_left(groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")]
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            own = groups / line.removeprefix("0::/").strip()
            folders = [own, *(parent for parent in own.parents if parent.is_relative_to(groups))]
            left += [_left(folder, "memory.max", "memory.current", "inactive_file") for folder in folders]
    return min((free for free in left if free is not None), default=None)


def _left(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    most, taken = _read(folder / limit).strip(), _read(folder / used).strip()
    if not (most.isdigit() and taken.isdigit()):  # no such group, or no limit
        return None
    cached = [
        line.split()[1] for line in _read(folder / "memory.stat").splitlines() if line.startswith(f"{reclaimable} ")
    ]
    return max(0, int(most) - int(taken) + sum(map(int, cached)))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
