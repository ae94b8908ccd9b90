"""Whether this machine can run an audit, and how well."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from mi_audit import __version__
from mi_audit.core.errors import AuditError
from mi_audit.store.cache import Cache

GIB = 2**30
TORCH_SAFE = (2, 10)  # earlier `weights_only` unpicklers run code or corrupt memory
LEAST_DISK, LEAST_MEMORY = 2, 4  # GiB


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str


def examine(cache: Path | None = None) -> tuple[Check, ...]:
    """All checks; `fail` means that no audit can run."""
    return (*_versions(), *_devices(), _threads(), _memory(), *_disk(cache))


def _versions() -> tuple[Check, ...]:
    python: Literal["ok", "fail"] = "ok" if sys.version_info >= (3, 11) else "fail"
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return (
        Check("mi-audit", "ok", __version__),
        Check("python", python, f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Check("torch", "ok" if release >= TORCH_SAFE else "fail", torch.__version__),
        *(Check(name, "ok", version(name)) for name in ("torchvision", "timm", "safetensors", "numpy", "scipy")),
    )


def _devices() -> tuple[Check, ...]:
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if facts.major >= 8 else "no bf16"
        found.append(Check(f"cuda:{index}", "ok", f"{facts.name}, {facts.total_memory / GIB:.0f} GiB, {bf16}"))
    if not found:
        found.append(Check("cuda", "warn", "no CUDA device: use --profile quick, or expect hours"))
    if torch.backends.mps.is_available():
        found.append(Check("mps", "ok", "available"))
    flags = torch.backends.cpu.get_cpu_capability()
    return (*found, Check("cpu", "ok", f"{platform.processor() or platform.machine()}, {flags}"))


def _threads() -> Check:
    cores, used = os.cpu_count() or 1, torch.get_num_threads()
    status: Literal["ok", "warn"] = "ok" if used <= cores else "warn"
    return Check("threads", status, f"{used} of {cores} cores")


def _memory() -> Check:
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return Check("memory", "ok", "unknown on this system")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    return Check("memory", "ok" if free >= LEAST_MEMORY else "warn", f"{free:.1f} GiB free")


def _disk(cache: Path | None) -> tuple[Check, ...]:
    place = Cache(cache)
    try:
        place.folder("doctor", "probe")
        size = sum(entry.size for entry in place.entries()) / GIB
        place.clear("doctor")
        own = Check("cache", "ok", f"{place.root}, {size:.2f} GiB used, writable")
    except AuditError as error:
        own = Check("cache", "fail", str(error))
    here = Path.cwd()
    free = shutil.disk_usage(here).free / GIB
    runs = Check("runs folder", "ok" if os.access(here, os.W_OK) else "warn", f"{here / 'runs'}")
    return (own, Check("disk", "ok" if free >= LEAST_DISK else "warn", f"{free:.1f} GiB free"), runs)
