"""The tensors of a network inside whatever a training script saved around them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mi_audit.core.errors import TargetError

WRAPPERS = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")  # added by data-parallel wrappers and by torch.compile


def tensors_in(content: object, source: Path | str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in a checkpoint, averaged weights first, and the keys it was found under.

    Raises:
        TargetError: There is no state dict.
    """
    path: list[str] = []
    while isinstance(content, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping | nn.Module)), None)
        if wrapper is None:
            break
        path.append(wrapper)
        content = content[wrapper]
        content = content.state_dict() if isinstance(content, nn.Module) else content
    if not isinstance(content, Mapping):
        raise TargetError(f"expected a state dict in {source}, got {type(content).__name__}; save model.state_dict()")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise TargetError(f"expected tensors in {source}, got {keys}; save model.state_dict()")
    return tensors, tuple(path)


def clean(tensors: Mapping[str, Tensor], source: Path | str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Names without wrapper prefixes and numbers as 32-bit floats, and what was changed, in words.

    Raises:
        TargetError: A tensor holds NaN or infinite numbers.
    """
    named, prefixes = _without_prefixes(dict(tensors))
    types = sorted({str(t.dtype).removeprefix("torch.") for t in named.values() if t.is_floating_point()} - {"float32"})
    cleaned = {name: t.float() if t.is_floating_point() else t for name, t in named.items()}
    for name, tensor in cleaned.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TargetError(
                f"expected finite weights, got NaN or infinite numbers in {name} of {source}; "
                "the training diverged or the file is damaged: use another checkpoint"
            )
    return cleaned, (
        *(f"prefix {prefix} removed" for prefix in prefixes),
        *(f"{kind} read as float32" for kind in types),
    )


def _without_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    removed: list[str] = []
    # Averaged weights come with a counter outside the wrapped module.
    if any(name.startswith("module.") for name in tensors):
        tensors.pop("n_averaged", None)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        removed.append(prefix)
    return tensors, tuple(removed)
