"""Whether an attack ran that knows the defense: a defense that only hides gradients must not come out as private."""

from collections.abc import Mapping, Sequence
from typing import Any

from mi_audit.core.attack import Attack
from mi_audit.core.run import Averaging
from mi_audit.core.verdict import ValidityFlag


def no_adaptive(
    defenses: Sequence[Mapping[str, object]], builds: Mapping[str, Attack[Any, Any]], averaging: Averaging | None = None
) -> ValidityFlag:
    """G6: a defense is declared, and neither an attack nor an averaging of views that is known to undo it ran."""
    declared = [defense for defense in defenses if defense and defense.get("method", "none") != "none"]
    if not declared:
        return ValidityFlag(id="G6 NO_ADAPTIVE", passed=True, detail="no defense is declared")
    method, advice = str(declared[0].get("method")), str(declared[0].get("adaptive_attack") or "")
    met = {part: _adaptive_to(part, builds, averaging) for part in method.split("+")}
    ran = list(dict.fromkeys(name for names in met.values() for name in names)) if all(met.values()) else []
    detail = f"the model declares the defense {method}; "
    return ValidityFlag(
        id="G6 NO_ADAPTIVE",
        passed=bool(ran),
        detail=detail + (f"{', '.join(ran)} is adaptive to it" if ran else "no attack that ran is adaptive to it"),
        clears="" if ran else f"run an attack that knows the defense{f': {advice}' if advice else ''}",
    )


def _adaptive_to(part: str, builds: Mapping[str, Attack[Any, Any]], averaging: Averaging | None) -> list[str]:
    """What ran that knows how to undo one defense."""
    ran = [name for name, attack in builds.items() if part in attack.adaptive_to]
    if averaging and part in averaging.adaptive_to:
        ran.append(f"averaging over {averaging.count} views ({averaging.kind})")
    return ran
