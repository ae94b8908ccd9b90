"""Whether an attack ran that knows the defense: a defense that only hides gradients must not come out as private."""

from collections.abc import Mapping, Sequence
from typing import Any

from mi_audit.audit.plan import parts_of
from mi_audit.core.attack import Attack
from mi_audit.core.defense import Edit
from mi_audit.core.run import LEAST_VIEWS, Averaging
from mi_audit.core.verdict import ValidityFlag
from mi_audit.nn.edits import structural

STUDENTS = "--attacks lomma"
RUNS: Mapping[str, str] = {  # what to add to `mi-audit attack` for the attack that knows a defense
    "tldmi": f"--views {LEAST_VIEWS}",
    "bido": f"--views {LEAST_VIEWS}",
    "mid": f"--views {LEAST_VIEWS}",
    "dp-sgd": f"--views {LEAST_VIEWS}",
    "midre": f"--views {LEAST_VIEWS} --view-kind erase",
    "atat": f"--views {LEAST_VIEWS} --view-kind paa",
    "negls": STUDENTS,
    "rolss": STUDENTS,
    "ssf": STUDENTS,
    "tts": STUDENTS,
    "loft": STUDENTS,
    "ca": f"{STUDENTS} --set attacks.lomma.loss=confidence",
    "trap-mid": f"{STUDENTS} --set attacks.lomma.students_only=true",
}


def options_for(method: str) -> str:
    """The options of `mi-audit attack` that answer every part of `method`, joined by ` and `; empty without any.

    Parts that need different kinds of views need a run each.
    """
    options = dict.fromkeys(RUNS[part] for part in parts_of(method) if part in RUNS)
    if any(one.startswith(f"{STUDENTS} ") for one in options):  # what it is set to leaves the students there
        options.pop(STUDENTS, None)
    return " and ".join(options)


def no_adaptive(
    defenses: Sequence[Mapping[str, object]],
    builds: Mapping[str, Attack[Any, Any]],
    averaging: Averaging | None = None,
    edits: Sequence[Sequence[Edit]] = (),
) -> ValidityFlag:
    """G6: a defense is there, and neither an attack nor an averaging of views that is known to undo it ran.

    Args:
        defenses: What the manifest of each model declares.
        builds: The attacks that ran.
        averaging: Of views, if there was one.
        edits: What a defense changed in each model; changes without a name are a defense that nobody knows how to undo.
    """
    unnamed = [
        made
        for defense, made in zip(defenses, edits or [()] * len(defenses), strict=True)
        if made and not _is_named(defense)
    ]
    if unnamed:
        what = "the architecture was" if any(map(structural, unnamed)) else "the answers are"
        return ValidityFlag(
            id="G6 NO_ADAPTIVE",
            passed=False,
            detail=f"{what} changed by a defense that the manifest does not name",
            clears="give the model with the manifest that was written when it was trained",
        )
    declared = [defense for defense in defenses if _is_named(defense)]
    if not declared:
        return ValidityFlag(id="G6 NO_ADAPTIVE", passed=True, detail="no defense is declared")
    method, advice = str(declared[0].get("method")), str(declared[0].get("adaptive_attack") or "")
    met = {part: _adaptive_to(part, builds, averaging) for part in method.split("+")}
    ran = list(dict.fromkeys(name for names in met.values() for name in names)) if all(met.values()) else []
    options = options_for(method)
    detail = f"the model declares the defense {method}; "
    return ValidityFlag(
        id="G6 NO_ADAPTIVE",
        passed=bool(ran),
        detail=detail + (f"{', '.join(ran)} is adaptive to it" if ran else "no attack that ran is adaptive to it"),
        clears="" if ran else _ways(advice, options),
    )


def _ways(advice: str, options: str) -> str:
    """What to do, in words and, where this program can do it, as options."""
    told = f": {advice}" if advice else ""
    return f"run an attack that knows the defense{told}" + (f" (`{options}`)" if options else "")


def _is_named(defense: Mapping[str, object]) -> bool:
    return (defense.get("method") or "none") != "none"


def _adaptive_to(part: str, builds: Mapping[str, Attack[Any, Any]], averaging: Averaging | None) -> list[str]:
    """What ran that knows how to undo one defense."""
    ran = [name for name, attack in builds.items() if part in attack.adaptive_to]
    if averaging and part in averaging.adaptive_to:
        ran.append(f"averaging over {averaging.count} views ({averaging.kind})")
    return ran
