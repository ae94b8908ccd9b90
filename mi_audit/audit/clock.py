"""Clock time, kept apart from results so that these do not depend on it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mi_audit.audit.progress import ProgressSink
from mi_audit.core.errors import StorageError
from mi_audit.store.runs import RunFolder
from mi_audit.store.times import TIMES_FILE, read_times


@dataclass
class Clock:
    """Seconds by stage and by job; a resumed run adds to the seconds of the earlier one.

    Attributes:
        stages, jobs: Seconds spent so far.
    """

    stages: dict[str, float] = field(default_factory=dict)
    jobs: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to stage `name`."""
        yield from self._timed(self.stages, name)

    @contextmanager
    def job(self, name: str) -> Iterator[None]:
        """Add the time of the block to job `name`."""
        yield from self._timed(self.jobs, name)

    def spent(self, name: str, seconds: float) -> None:
        """Add `seconds` to job `name`, if it took any."""
        if seconds:
            self.jobs[name] = round(self.jobs.get(name, 0.0) + seconds, 3)

    @staticmethod
    def _timed(table: dict[str, float], name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            table[name] = round(table.get(name, 0.0) + time.monotonic() - start, 3)

    def write(self, folder: RunFolder, progress: ProgressSink) -> None:
        """Merge with what an interrupted run left, and save `timing.json`; a damaged one is written anew."""
        earlier = None
        try:
            earlier = read_times(folder.path)
        except StorageError:
            progress.warn(f"{folder.path / TIMES_FILE} was damaged and is written anew with the times of this run only")
        earlier = earlier or {"stages": {}, "jobs": {}}
        stages = {name: round(earlier["stages"].get(name, 0.0) + spent, 3) for name, spent in self.stages.items()}
        total = {
            "stages": {**earlier["stages"], **stages},
            "jobs": {**earlier["jobs"], **self.jobs},
            "total_seconds": round(sum({**earlier["stages"], **stages}.values()), 3),
        }
        folder.write_text(TIMES_FILE, json.dumps(total, indent=2, sort_keys=True) + "\n")
