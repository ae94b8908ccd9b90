"""The unit of work: one attack on one chunk of classes under one seed, with one atomic result file."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from mi_audit.audit.progress import ProgressSink
from mi_audit.core.errors import AuditError, ConfigError, StorageError
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
    """

    job: Job
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A job that raised; the others went on."""

    job: Job
    message: str


Outcome = JobResult | JobFailure
Perform = Callable[[Job], tuple[Mapping[str, Tensor], Mapping[str, object]]]


def execute(jobs: Iterable[Job], perform: Perform, folder: RunFolder, progress: ProgressSink) -> Iterator[Outcome]:
    """Run the jobs that have no result file yet, in order, and yield the results of all.

    A failing job is reported and the others go on; an interrupt leaves every finished result in place. A full disk and
    a wrong setting stop the run, because they would fail every job alike.
    """
    for job in jobs:
        kept = folder.read_job(job.name)
        if kept is None:
            try:
                tensors, facts = perform(job)
            except (ConfigError, StorageError):
                raise
            except AuditError as error:
                progress.warn(f"{job.name}: {error}")
                yield JobFailure(job, str(error))
                continue
            except (RuntimeError, ValueError, ArithmeticError) as error:
                progress.warn(f"{job.name}: {type(error).__name__}: {error}")
                last = traceback.extract_tb(error.__traceback__)[-1]
                yield JobFailure(job, f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})")
                continue
            folder.write_job(job.name, tensors, facts)
            kept = folder.read_job(job.name)
            if kept is None:
                raise StorageError(
                    f"expected to read back {job.name}, got a damaged file; check the disk and run again"
                )
        yield JobResult(job, *kept)
