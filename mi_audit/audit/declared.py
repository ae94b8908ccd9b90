"""V1: whether the model that was audited is as good as its owner says, so that it is the right model, read rightly."""

from collections.abc import Iterable

from mi_audit.core.report import ModelFacts
from mi_audit.core.verdict import ValidityFlag

ID = "V1 ACCURACY"
TOLERANCE = 0.02  # on either side; a model that is better than declared was judged on pictures it was trained on
SLACK = 1e-9  # so that 0.86 and 0.84 are two points apart


def reproduced(models: Iterable[ModelFacts], wanted: float | None) -> ValidityFlag:
    """V1: the measured test accuracy is within two points of the declared one; of several models the worst counts.

    The declared accuracy is `wanted`, a share, for a model as it was given; else what the manifest of a model that we
    trained ourselves says. Nothing declared is nothing checked, and blocks nothing.

    A test set of n pictures tells accuracies apart only as finely as its exact 95 % interval. Where the value is
    further off, but the interval still reaches to within two points, sampling explains the deviation: neither passed
    nor failed. Where all of the interval is further off, it failed.
    """
    found = [_compared(model, wanted) for model in models]
    for passed in (False, None, True):
        worst = [flag for flag in found if flag.passed is passed]
        if worst:
            return worst[0]
    raise ValueError("expected at least one model")


def declared_of(model: ModelFacts, wanted: float | None) -> tuple[float, str] | None:
    """The declared accuracy and who says so; None when nobody does."""
    if wanted is not None and model.seed is None:
        return wanted, "as declared with the model"
    written = model.defense.get("test_accuracy")
    return (written, "as its manifest says") if isinstance(written, float) else None


def _compared(model: ModelFacts, wanted: float | None) -> ValidityFlag:
    declared, measured = declared_of(model, wanted), model.accuracy
    if declared is None:
        return ValidityFlag(
            id=ID, passed=None, detail="not run: no accuracy is declared", clears="give --declared-accuracy"
        )
    if measured.value is None:
        clears = "add test images"
        return ValidityFlag(id=ID, passed=None, detail=f"not run: {measured.reason}", clears=clears)
    value, ends = measured.value, measured.interval
    low, high = (ends.low, ends.high) if ends else (value, value)
    detail = (
        f"accuracy {value:.1%} [{100 * low:.1f}, {100 * high:.1f}] on {measured.count} test images, "
        f"{declared[0]:.1%} {declared[1]}"
    )
    if abs(value - declared[0]) <= TOLERANCE + SLACK:
        return ValidityFlag(id=ID, passed=True, detail=detail)
    if low <= declared[0] + TOLERANCE + SLACK and high >= declared[0] - TOLERANCE - SLACK:
        return ValidityFlag(
            id=ID, passed=None, detail=f"{detail}; too few images to tell them apart", clears="add test images"
        )
    return ValidityFlag(
        id=ID,
        passed=False,
        detail=f"{detail}: more than {TOLERANCE:.0%} apart",
        clears="check weights, --input-size, --mean/--std and --class-order, and that these are the test images that "
        "the declared accuracy is of",
    )
