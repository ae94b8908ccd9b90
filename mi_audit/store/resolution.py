"""Which network a file of weights belongs to: declared facts completed by what the tensors show."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mi_audit.core.errors import TargetError
from mi_audit.store.architectures import complete_name, defaults, read_shapes
from mi_audit.store.inference import infer
from mi_audit.store.manifest import Declared


def resolve(declared: Declared, shapes: Mapping[str, tuple[int, ...]], ref: str) -> tuple[Declared, tuple[str, ...]]:
    """Complete what was declared from tensor shapes and the architecture's defaults; also other architectures that fit.

    Raises:
        TargetError: No architecture fits, the input size is unknown, or a file names code of yours to import.
    """
    candidates: tuple[str, ...] = ()
    if declared.arch is None:
        candidates = infer(shapes, ref)
        origin = "tensor names and shapes" + (f"; also fits {', '.join(candidates[1:])}" if candidates[1:] else "")
        declared = declared.over(Declared.of(origin, arch=candidates[0]))
    origin = declared.origins["arch"]
    arch = complete_name(str(declared.arch), origin)
    if arch.startswith("py:") and origin != "flag":
        raise TargetError(
            f"expected an architecture of a library, got {arch} in the {origin} of {ref}, which runs your own code; "
            f"add --arch {arch} if you want that"
        )
    declared = replace(declared, arch=arch).over(read_shapes(arch, shapes, declared.model_kwargs or {}))
    complete = declared.over(defaults(arch)).over(Declared.of("default", channels=3, model_kwargs={}))
    if complete.size is None:
        raise TargetError(
            f"expected an input size for {arch}, got none in {ref} or its sidecar; "
            "add --input-size, such as --input-size 64"
        )
    return complete, candidates[1:]


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one per line.

    Raises:
        TargetError: The file cannot be read.
    """
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"expected a text file of class names, got '{error}'; correct --labels") from error
