"""The unit of work: one attack on one chunk of classes under one seed, with one atomic result file."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from mi_audit.audit.progress import ProgressSink
from mi_audit.core.errors import StorageError
from mi_audit.store.runs import RunFolder


@dataclass(frozen=True, slots=True)
class Job:
    """What to run, and the hash of everything that its result depends on.

    Attributes:
        attack: Name of the attack or control.
        classes: Labels of the chunk.
        seed: Root of its random streams.
        id: Hash of target, prior, attack, settings, code version, classes, seed and image size.
    """

    attack: str
    classes: tuple[int, ...]
    seed: int
    id: str

    @property
    def name(self) -> str:
        """File name of the result, without its ending."""
        first, last = self.classes[0], self.classes[-1]
        return f"{self.attack.replace(':', '-')}-s{self.seed}-c{first:04d}-{last:04d}-{self.id[:16]}"


@dataclass(frozen=True, slots=True, eq=False)
class JobResult:
    """What a job left behind.

    Attributes:
        tensors: `images` (uint8), `labels`, `confidence`, `accepted` by the target.
        facts: Queries, work, curves; everything but clock time.
        seconds: What it took now; 0 when it was done before.
    """

    job: Job
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, object]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A job that raised; the others went on."""

    job: Job
    message: str
    seconds: float = 0.0


Outcome = JobResult | JobFailure
Step = Callable[[str, int, int], None]  # stage, done, total
Produced = tuple[Mapping[str, Tensor], Mapping[str, object]]
Perform = Callable[[Job, Step], Produced]


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """What came of doing a job once.

    Attributes:
        produced: Its tensors and facts; None when it failed.
        message: Why it failed.
        seconds: How long it took.
    """

    job: Job
    produced: Produced | None
    message: str = ""
    seconds: float = 0.0


@runtime_checkable
class Executor(Protocol):
    """Where jobs are done: in this process, in one process per device, on other machines."""

    def attempts(self, jobs: Sequence[Job], perform: Perform, progress: ProgressSink) -> Iterator[Attempt]:
        """One attempt per job, in the order in which they end; only what would fail every job alike is raised."""


def execute(
    jobs: Iterable[Job], perform: Perform, folder: RunFolder, progress: ProgressSink, executor: Executor
) -> Iterator[Outcome]:
    """Have the jobs done that have no result file yet, and yield the results of all in the order of `jobs`.

    Every result is on disk as soon as its job ended, whatever happens to the others. A failing job is reported and the
    others go on; an interrupt leaves every finished result in place. A full disk, a wrong setting and a lost device
    stop the run, because they would fail every job alike.
    """
    jobs, done, missing = tuple(jobs), dict[str, Outcome](), list[Job]()
    for job in jobs:
        kept = folder.read_job(job.name)
        if kept is None:
            missing.append(job)
        else:
            done[job.name] = JobResult(job, *kept)
    arriving = executor.attempts(missing, perform, progress)
    for job in jobs:
        while job.name not in done:
            ended = next(arriving)
            done[ended.job.name] = _kept(ended, folder, progress)
        yield done[job.name]


def _kept(ended: Attempt, folder: RunFolder, progress: ProgressSink) -> Outcome:
    """The outcome of an attempt, whose result is on disk now."""
    job = ended.job
    if ended.produced is None:
        progress.warn(f"{job.name}: {ended.message}")
        return JobFailure(job, ended.message, ended.seconds)
    folder.write_job(job.name, *ended.produced)
    kept = folder.read_job(job.name)
    if kept is None:
        raise StorageError(f"expected to read back {job.name}, got a damaged file; check the disk and run again")
    return JobResult(job, *kept, ended.seconds)
