"""Tensors in safetensors files: read without running anything, written with the same bytes every time."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mi_audit.core.errors import TargetError
from mi_audit.store.documents import UNREADABLE
from mi_audit.store.files import write_atomic

KEY = "mi_audit"  # the one metadata key that holds everything of ours, as JSON


def write_weights(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Write `tensors`, with `facts` as JSON in the metadata; the same input gives the same bytes.

    Raises:
        StorageError: The file cannot be written.
    """
    data = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    # Written here because the library keeps metadata in a hash map whose order differs from call to call.
    header["__metadata__"] = {"format": "pt", KEY: json.dumps(facts, sort_keys=True, allow_nan=False)}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomic(path, len(text).to_bytes(8, "little") + text + data[8 + size :])


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    Raises:
        TargetError: The file is missing, truncated or of another format.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as error:
        raise TargetError(f"expected a file of weights, got no file at {path}; correct the path") from error
    except (SafetensorError, OSError) as error:
        raise TargetError(
            f"expected a complete safetensors file, got {path} with '{error}'; download or export it again"
        ) from error


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shape of every tensor of a safetensors file, and its metadata, without reading the tensors.

    Raises:
        TargetError: The file is missing, truncated or of another format.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return shapes, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise TargetError(
            f"expected a complete safetensors file, got {path} with '{error}'; download or export it again"
        ) from error


def read_facts(path: Path) -> dict[str, object]:
    """What `write_weights` put beside the tensors of a file; nothing for a file that others wrote.

    Raises:
        TargetError: The file is missing, truncated or of another format, or its facts are damaged.
    """
    try:
        facts = json.loads(read_header(path)[1].get(KEY, "{}"))
    except UNREADABLE as error:
        raise TargetError(f"expected JSON in the metadata of {path}, got '{error}'; make the file again") from error
    if not isinstance(facts, dict):
        raise TargetError(f"expected a JSON object in the metadata of {path}, got {facts!r:.40}; make the file again")
    return facts


def hash_weights(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes; does not depend on the file or on the order of the tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()
