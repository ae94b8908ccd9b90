"""mi-audit: can someone who holds this image classifier rebuild the people it was trained on?"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_target", "run_attack", "run_defense"]

if TYPE_CHECKING:
    from mi_audit.audit.attack import run_attack
    from mi_audit.audit.defend import run_defense
    from mi_audit.store.targets import load_target

_HOMES = {
    "load_target": "mi_audit.store.targets",
    "run_attack": "mi_audit.audit.attack",
    "run_defense": "mi_audit.audit.defend",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the public functions on first use, so that `mi-audit gate` never loads torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mi_audit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
