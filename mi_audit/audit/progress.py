"""Where the engine reports what it is doing."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class ProgressSink(Protocol):
    """Somebody who watches a run: a terminal, a log, a test."""

    def stage(self, title: str) -> None:
        """A new part of the run begins."""

    def step(self, label: str, done: int, total: int) -> None:
        """`done` of `total` units of `label` are finished."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def warn(self, text: str) -> None:
        """Something the user should know before trusting the result."""


class Silent:
    """A sink that ignores everything."""

    def stage(self, title: str) -> None: ...

    def step(self, label: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...
