"""What the machine can do, what a run asks of it, and what it took: ceilings, operations, bytes."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.paired import finish


def facts(device: str) -> dict[str, Any]:
    """What a reader has to know about the machine."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    kind = torch.device(device).type
    return {"kind": kind, "device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


@torch.no_grad()
def ceiling(device: str, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """The most operations per second that a convolution or a matrix product reached, here and now."""
    wide = 32 if device == "cpu" else 512
    maps = torch.randn(wide, 256, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    side = 2048 if device == "cpu" else 8192
    left = torch.randn(side, side, device=device, dtype=dtype)
    works = (
        (lambda: F.conv2d(maps, kernel, padding=1), 2 * wide * 32 * 32 * 256 * 256 * 9),
        (lambda: left @ left, 2 * side**3),
    )
    return max(operations / _shortest(work, clock) for work, operations in works)


def _shortest(work: Callable[[], object], clock: Callable[[], float], tries: int = 4) -> float:
    seconds = []
    for _ in range(tries):
        finish()
        start = clock()
        work()
        finish()
        seconds.append(clock() - start)
    return min(seconds[1:])


def forward_operations(inputs: Mapping[str, tuple[nn.Module, tuple[Any, ...]]]) -> dict[str, float]:
    """Multiplications and additions of one pass per image through each network, given a batch of inputs."""
    found = {}
    for name, (module, given) in inputs.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*given)
        found[name] = counter.get_total_flops() / len(given[0])
    return found


def useful_operations(work: Mapping[str, int], forward: Mapping[str, float]) -> float:
    """Operations that a run needs: its passes; back to the images, not to the weights, costs what a forward pass does.

    Args:
        work: Images passed through each network, as `Run.work` counts them.
        forward: Operations of one image through each network.
    """
    return float(sum(count * forward[name.rpartition("_")[0]] for name, count in work.items()))


def peak(work: Callable[[], object], device: str) -> int:
    """Most bytes of tensors that lived at once during `work`, above what was there before."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        finish()
        return torch.cuda.max_memory_allocated() - before
    with silenced(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    results = watched.profiler.kineto_results
    changes = [event.nbytes() for event in results.events() if event.name() == "[memory]"]
    most = now = 0
    for change in changes:
        now += change
        most = max(most, now)
    return most


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing that is not Python writes to the terminal: the profiler announces every start and stop."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
