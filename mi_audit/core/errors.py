"""Every error the package raises on purpose. The command line prints these in one line and hides the traceback.

    AuditError                 exit 4   the run failed
    ├── ConfigError            exit 2   an option, a file of settings or a combination of them is wrong
    ├── NothingToAudit         exit 3   nothing could be measured
    │   ├── TargetError        exit 3   the model cannot be loaded, or is not the model it is said to be
    │   └── DataError          exit 3   a data set is missing, broken or does not fit the model
    ├── PriorTooWeak           exit 4   the attacker's prior cannot reach the attacked classes
    ├── Diverged               exit 4   a loss became NaN or infinite
    ├── QueryBudgetExceeded    exit 4   an attack asked the target more often than it was allowed to
    ├── NotDeterministic       exit 4   an operation has no deterministic version
    ├── OutOfMemory            exit 4   a single sample does not fit the device
    ├── DeviceLost             exit 4   an accelerator, or every process of the run, stopped answering
    └── StorageError           exit 4   a result could not be written or is damaged

A message reads `expected A, got B; do C`.
"""

from typing import ClassVar


class AuditError(Exception):
    """The root of the tree; its message says what was expected, what was found, and what to do."""

    exit_code: ClassVar[int] = 4


class ConfigError(AuditError):
    """A setting is unknown, out of range, or contradicts another one."""

    exit_code = 2


class NothingToAudit(AuditError):
    """There is nothing to measure, so no verdict can be given."""

    exit_code = 3


class TargetError(NothingToAudit):
    """The model cannot be loaded, or its accuracy shows that it was loaded wrongly."""


class DataError(NothingToAudit):
    """A data set is missing, damaged, or does not fit the model; the message names the file."""


class PriorTooWeak(AuditError):
    """No image of the prior reaches an attacked class."""


class Diverged(AuditError):
    """A loss became NaN or infinite; the message names the stage, the step and the classes."""


class QueryBudgetExceeded(AuditError):
    """An attack exceeded the number of images it may ask the target about."""


class NotDeterministic(AuditError):
    """Every operation was asked to be deterministic, and one cannot be; the message names it."""


class OutOfMemory(AuditError):
    """Even a batch of one does not fit the device."""


class DeviceLost(AuditError):
    """An accelerator stopped answering, or no process is left to work; finished jobs are kept.

    Attributes:
        reason: What the accelerator said; empty when there is none.
    """

    reason: str = ""


class StorageError(AuditError):
    """A file could not be written (full disk, no permission) or was found damaged."""
