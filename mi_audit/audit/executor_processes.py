"""One process per device over one list of jobs; only the run itself writes files."""

import contextlib
import io
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import torch

from mi_audit.audit.executor import InProcess
from mi_audit.audit.executor_worker import Order, Ready, Reply, Stepped, Stopped, Work, receive, send
from mi_audit.audit.jobs import Attempt, Job, Perform
from mi_audit.audit.progress import ProgressSink
from mi_audit.core.errors import DeviceLost

START = "import sys; sys.path[:] = sys.argv[2:]; from mi_audit.audit.executor_worker import main; main(sys.argv[1])"
TRIES = 2  # of a job whose process ended
LOSSES = 3  # jobs in a row at which a process lost its device, after which no other one takes its place


@dataclass(eq=False)
class Worker:
    """One process, as the run sees it.

    Attributes:
        place: Its environment: the device it sees.
        replies: Where its messages go; None says that it ended.
        seat: Number of its place.
        losses: Jobs in a row at which this process, and those before it in its place, lost their device.
        why: What the device said when it was lost.
        job: What it is doing.
        ready: It waits for a job.
        proven: It was ready once, so that another one in its place has a chance.
    """

    device: str
    place: Mapping[str, str]
    replies: "queue.SimpleQueue[tuple[Worker, Reply | None]]"
    seat: int = 0
    losses: int = 0
    why: str = ""
    job: Job | None = None
    ready: bool = False
    proven: bool = False
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        # a session of its own: Ctrl-C in a terminal reaches the run, which ends its processes
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, self.device, *sys.path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **self.place}, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()

    def give(self, order: Order) -> None:
        """Send an order; when the process has just ended, that is found out from its silence."""
        self.ready = False
        self.job = order if isinstance(order, Job) else None
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            send(self.process.stdin, order)

    def end(self) -> str:
        """Kill the process, if it still lives, and say how it ended."""
        self.process.kill()
        code = self.process.wait()
        if self.why:
            return f"lost its device ({self.why})"
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            while isinstance(reply := receive(stream), Reply):
                self.replies.put((self, reply))
        self.replies.put((self, None))


class Processes:
    """One process per place, started when there is something to do, and ended with the run.

    Every process gets the whole work once and then a job at a time. A job whose process ended is given to another one
    once; then it has failed. A device at which three jobs in a row were lost gets no other process. Nothing that a job
    computes depends on which process does it.
    """

    def __init__(self, device: str, places: Sequence[Mapping[str, str]]) -> None:
        self._device, self._places = device, list(places)
        self._workers: list[Worker] = []
        self._replies: queue.SimpleQueue[tuple[Worker, Reply | None]] = queue.SimpleQueue()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.end()
        self._workers, self._replies = [], queue.SimpleQueue()

    def attempts(self, jobs: Sequence[Job], perform: Perform, progress: ProgressSink) -> Iterator[Attempt]:
        """One attempt per job, in the order in which they end.

        Raises:
            DeviceLost: No process is left.
        """
        if not jobs:
            return
        try:
            work = Work(_saved(perform))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            progress.warn(f"one device does all of it: the work cannot be sent to another process ({error})")
            yield from InProcess(self._device).attempts(jobs, perform, progress)
            return
        try:
            yield from self._shared(deque(jobs), work, progress)
        finally:
            if any(worker.job for worker in self._workers):  # nobody waits for them any more
                self.close()

    def _shared(self, waiting: deque[Job], work: Work, progress: ProgressSink) -> Iterator[Attempt]:
        lost: dict[str, list[int]] = defaultdict(list)  # the seats at which a job was lost
        taken = {worker.seat for worker in self._workers}
        for seat, place in enumerate(self._places):
            if seat not in taken and len(self._workers) < len(waiting):
                self._workers.append(Worker(self._device, place, self._replies, seat))
        for worker in self._workers:
            worker.give(work)
        left = len(waiting)
        while left:
            for worker in self._workers:
                if worker.ready and (job := self._next(waiting, lost, worker)):
                    worker.give(job)
            if not self._workers:
                raise DeviceLost(
                    "expected a process per device, got none that can work; finished jobs are kept: see above why, "
                    "then repeat the command, with --devices 1 for one process"
                )
            worker, reply = self._replies.get()
            match reply:
                case Ready():
                    worker.proven = True
                    worker.ready = worker.job is None  # not when it says so of work before this one
                case Stepped():
                    progress.step(reply.label, reply.done, reply.total)
                case Attempt():
                    worker.ready, worker.job, worker.losses = True, None, 0
                    left -= 1
                    yield reply
                case Stopped(DeviceLost() as lost_device):
                    worker.why = lost_device.reason or str(lost_device)  # and it ends
                case Stopped():
                    raise reply.error
                case None if worker in self._workers:
                    job, how = self._replaced(worker, work), worker.end()
                    if job is None:
                        progress.warn(f"a process {how} before it could work; the others go on")
                        continue
                    lost[job.name].append(worker.seat)
                    if len(lost[job.name]) < TRIES:
                        progress.warn(f"{job.name}: its process {how}; another one tries again")
                        waiting.append(job)
                    else:
                        left -= 1
                        yield Attempt(job, None, f"its process {how}, {TRIES} times")

    def _next(self, waiting: deque[Job], lost: Mapping[str, list[int]], worker: Worker) -> Job | None:
        """Take the next job for `worker`: none that was lost in its place while there are others."""
        for job in waiting:
            if len(self._workers) == 1 or worker.seat not in lost.get(job.name, ()):
                waiting.remove(job)
                return job
        return None

    def _replaced(self, worker: Worker, work: Work) -> Job | None:
        """Put another process in the place of one that ended, if that can help; what the old one was doing."""
        self._workers.remove(worker)
        losses = worker.losses + 1 if worker.why else 0
        if worker.proven and losses < LOSSES:
            fresh = Worker(self._device, worker.place, self._replies, worker.seat, losses)
            self._workers.append(fresh)
            fresh.give(work)
        return worker.job


def _saved(perform: Perform) -> bytes:
    """The work with its tensors, those that share memory once."""
    buffer = io.BytesIO()
    torch.save(perform, buffer)
    return buffer.getvalue()
