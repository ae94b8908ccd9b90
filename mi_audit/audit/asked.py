"""Whether the gate could judge what is asked of it: known before the run, not after hours of it. Free of torch."""

from collections.abc import Collection, Sequence
from difflib import get_close_matches

from mi_audit.audit.expression import parse
from mi_audit.audit.gate import KNOWN
from mi_audit.audit.plan import RulePlan
from mi_audit.core.errors import ConfigError


def check_rules(
    rules: Sequence[RulePlan], measured: Collection[str], baseline: bool, max_regression: float | None = None
) -> None:
    """Read all rules and look up what they name.

    Args:
        rules: Conditions to fail on.
        measured: Names of the measurements of every metric there is.
        baseline: Whether there will be something that `baseline.METRIC` refers to.
        max_regression: Largest rise over the baseline, when one is asked for.

    Raises:
        ConfigError: A rule cannot be read, names an unknown metric, or needs a baseline that is not there.
    """
    known = sorted({*KNOWN, *measured})
    for rule in rules:
        for reference in parse(rule.when).references():
            if reference.metric not in known:
                close = get_close_matches(reference.metric, known, n=1)
                advice = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
                raise ConfigError(
                    f"expected a known metric in the gate rule {rule.when!r}, got {reference.metric!r}; {advice}"
                )
            if reference.source == "baseline" and not baseline:
                raise ConfigError(
                    f"expected a baseline for the gate rule {rule.when!r}, got none; give --baseline RESULT.json"
                )
    if max_regression is not None and not baseline:
        raise ConfigError("expected a baseline for --max-regression, got none; give --baseline RESULT.json")
