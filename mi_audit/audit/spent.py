"""What a finished run took, for foretelling one with more people. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mi_audit.core.errors import ConfigError
from mi_audit.core.report import AuditReport, Comparison

MEASURE = "measure"  # the stage whose time grows with the people, beside that of the jobs


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of a run.

    Attributes:
        device: Where it ran.
        people: How many were attacked.
        per_person: Attacks, controls, seeds and measuring, of each of them.
        once: What does not depend on their number: loading, and training what was not kept from earlier runs.
    """

    device: str
    people: int
    per_person: float
    once: float

    def expected(self, people: int) -> float:
        """Seconds for as many people with the same settings on the same machine."""
        return self.once + self.per_person * people


def spent(result: AuditReport | Comparison, timing: Mapping[str, Any] | None) -> Spent:
    """What the run behind `result` took, of which `timing` is the content of `timing.json`.

    Raises:
        ConfigError: Nobody was attacked, or the times are missing.
    """
    report = result.after if isinstance(result, Comparison) else result
    jobs, stages = (timing or {}).get("jobs"), (timing or {}).get("stages")
    if not report.attacked or not jobs or not isinstance(stages, Mapping):
        raise ConfigError(
            "expected a finished run with its timing.json, got one without times; give a folder that attack wrote"
        )
    attacks = {attack.name for attack in report.attacks}
    once = sum(seconds for name, seconds in stages.items() if name != MEASURE and name.split(" ")[0] not in attacks)
    grows = sum(jobs.values()) + stages.get(MEASURE, 0.0)
    return Spent(report.device, len(report.attacked), grows / len(report.attacked), once)
