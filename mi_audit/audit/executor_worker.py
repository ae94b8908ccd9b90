"""The process of one device: takes jobs from its standard input, gives attempts to its standard output."""

import io
import os
import pickle
import queue
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import IO

import torch

from mi_audit.audit.devices import on_device
from mi_audit.audit.executor import FATAL, attempt
from mi_audit.audit.jobs import Attempt, Job, Perform
from mi_audit.core.errors import AuditError, DeviceLost

PREFIX = 8  # bytes that tell the length of a message


@dataclass(frozen=True, slots=True)
class Work:
    """How the jobs that follow are done: a saved `Perform`."""

    saved: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """The process has loaded its work and waits for a job."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """Progress inside a job."""

    label: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """What would fail every job alike was met; the process ends when its device is lost."""

    error: AuditError


Reply = Ready | Stepped | Stopped | Attempt
Order = Work | Job


def send(stream: IO[bytes], message: Reply | Order) -> None:
    """Write a message with its length in front."""
    data = pickle.dumps(message)
    stream.write(len(data).to_bytes(PREFIX, "big") + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Reply | Order | None:
    """The next message; None when the other side is gone."""
    size = stream.read(PREFIX)
    data = stream.read(int.from_bytes(size, "big")) if len(size) == PREFIX else b""
    # both ends are this program on this machine, and nobody else holds the pipe
    return pickle.loads(data) if data and len(data) == int.from_bytes(size, "big") else None


def main(device: str) -> None:
    """Do what comes until nobody gives orders any more."""
    warnings.simplefilter("ignore")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the messages
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    perform: Perform | None = None
    while True:
        try:
            perform = _obey(orders.get(), perform, replies, device)
        except FATAL as error:
            send(replies, Stopped(error))
            if isinstance(error, DeviceLost):
                os._exit(1)  # nothing is left to clear up, and clearing up may hang on a device that has failed


def _obey(order: Order, perform: Perform | None, replies: IO[bytes], device: str) -> Perform:
    if isinstance(order, Work):
        with on_device(device):
            loaded: Perform = torch.load(io.BytesIO(order.saved), map_location=device, weights_only=False)
        send(replies, Ready())
        return loaded
    assert perform is not None
    send(replies, attempt(order, perform, lambda *step: send(replies, Stepped(*step)), device))
    return perform


def _listen(orders: "queue.SimpleQueue[Order]") -> None:
    """Pass orders on; without the run that gives them, even a killed one, the process ends at once."""
    while isinstance(order := receive(sys.stdin.buffer), Work | Job):
        orders.put(order)
    os._exit(0)
