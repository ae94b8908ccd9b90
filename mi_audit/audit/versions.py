"""Versions of the tool and of the libraries under it."""

import platform
from importlib.metadata import version

from mi_audit import __version__

TRAINING = ("mi-audit", "torch", "torchvision", "timm")  # those that rebuilding a trained network depends on


def tool_versions() -> dict[str, str]:
    """Versions that can change a number."""
    libraries = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "scipy")}
    return {"mi-audit": __version__, "python": platform.python_version(), **libraries}
