"""Where the jobs of a run are done: in this process, or in one process per device."""

import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from mi_audit.audit.devices import device_lost, lost
from mi_audit.audit.jobs import Attempt, Executor, Job, Perform, Step
from mi_audit.audit.progress import ProgressSink
from mi_audit.core.errors import AuditError, ConfigError, DeviceLost, StorageError

FATAL = (ConfigError, StorageError, DeviceLost)  # would fail every job alike
ENDURED = (AuditError, RuntimeError, ValueError, ArithmeticError, MemoryError)  # the others only fail a job


@dataclass(frozen=True, slots=True)
class InProcess:
    """One job after the other, here.

    Attributes:
        device: What they compute on.
    """

    device: str = "cpu"

    def attempts(self, jobs: Sequence[Job], perform: Perform, progress: ProgressSink) -> Iterator[Attempt]:
        """One attempt per job, in their order."""
        for job in jobs:
            yield attempt(job, perform, progress.step, self.device)


def attempt(job: Job, perform: Perform, on_step: Step, device: str) -> Attempt:
    """Do a job; most errors only fail the job.

    Raises:
        ConfigError, StorageError: Every other job would fail alike.
        DeviceLost: The job failed and this process cannot use the device any more.
    """
    start = time.monotonic()
    produced, message = None, ""
    try:
        produced = perform(job, on_step)
    except FATAL:
        raise
    except AuditError as error:
        message = str(error)
    except ENDURED as error:
        if lost(error, device):  # the other jobs must not be tried in this process
            raise device_lost(error, device, job.name) from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})"
    return Attempt(job, produced, message, round(time.monotonic() - start, 3))


def executor_for(device: str, count: int) -> AbstractContextManager[Executor]:
    """The executor of a run on `count` devices of the kind `device`; leaving the context ends its processes.

    Raises:
        ConfigError: There are not as many.
    """
    if count == 1:
        return nullcontext(InProcess(device))
    from mi_audit.audit.executor_processes import Processes

    return Processes(device, places(device, count))


def places(device: str, count: int) -> list[dict[str, str]]:
    """The environment of every process: which device it sees, and how many threads it may use.

    Raises:
        ConfigError: A single device is named, or there are not as many.
    """
    threads = str(max(1, torch.get_num_threads() // count))
    shared = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if device == "cpu":
        return [shared] * count
    if device != "cuda":
        raise ConfigError(
            f"expected --device cpu or cuda with --devices {count}, got {device}; leave out --devices, or choose the "
            "devices with the variable CUDA_VISIBLE_DEVICES"
        )
    if count > torch.cuda.device_count():
        raise ConfigError(
            f"expected --devices up to {torch.cuda.device_count()}, got {count}; there is one process per device"
        )
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible or [str(number) for number in range(count)]
    return [{**shared, "CUDA_VISIBLE_DEVICES": name} for name in names[:count]]
