"""One file of weights, of any format: recognised by its content, read without running it unless the user says so."""

import pickle
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mi_audit.core.errors import TargetError
from mi_audit.store.pickles import convert_in_child, dangerous, globals_in, is_torchscript, zip_names
from mi_audit.store.state_dicts import clean, tensors_in
from mi_audit.store.weights import read_weights

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".th")
PROGRAMS = (".pkl", ".pickle", ".pt2", ".torchscript", ".ptc", ".joblib")
SUFFIXES = (".safetensors", *PICKLES, *PROGRAMS)
HEAD = 512  # bytes that tell an error page or a pointer from weights


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The tensors of a file, cleaned, with what the file says about itself.

    Attributes:
        format: `safetensors`, `torch (weights only)` or `unsafe`, with how it was read.
        notes: What was unwrapped or changed on the way.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    format: str
    notes: tuple[str, ...] = field(default=())


def open_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Read a file of weights.

    Raises:
        TargetError: The file is missing, damaged, no weights at all, holds NaN, or could run code.
    """
    kind = recognise(path)
    if kind == "safetensors":
        tensors, metadata = read_weights(path)
        cleaned, notes = clean(tensors, path)
        return Checkpoint(path, cleaned, metadata, kind, notes)
    if kind == "torch":
        content = _load_weights_only(path, allow_pickle)
        if content is not None:
            tensors, wrappers = tensors_in(content, path)
            cleaned, notes = clean(tensors, path)
            return Checkpoint(
                path, cleaned, {}, "torch (weights only)", (*(f"taken from {w}" for w in wrappers), *notes)
            )
    if not allow_pickle:
        raise TargetError(refusal(path))
    converted, how = convert_in_child(path)
    try:
        cleaned, notes = clean(read_weights(converted)[0], path)
    finally:
        shutil.rmtree(converted.parent, ignore_errors=True)
    return Checkpoint(path, cleaned, {}, f"unsafe, in a {how}", notes)


def recognise(path: Path) -> str:
    """`safetensors`, `torch` (may be plain tensors) or `program` (runs code when loaded), by content.

    Raises:
        TargetError: The file is missing, empty, a web page, a pointer to a file elsewhere, or of an unknown kind.
    """
    if not path.is_file():
        raise TargetError(f"expected a file of weights, got no file at {path}; correct the path")
    with path.open("rb") as file:
        start = file.read(HEAD)
    _refuse_impostors(path, start)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return "safetensors"
    if suffix in PROGRAMS or is_torchscript(path) or _is_package(path):
        return "program"
    if suffix in PICKLES:
        return "torch"
    raise TargetError(f"expected weights in one of {', '.join(SUFFIXES)}, got {path}; export the model as safetensors")


def refusal(path: Path) -> str:
    """Why a file that can run code is not loaded, naming what it would call."""
    if is_torchscript(path):
        what = "a TorchScript program"
    elif _is_package(path) or path.suffix.lower() == ".pt2":
        what = "an exported program, which torch loads through pickle"
    else:
        names = globals_in(path)
        listed = dangerous(names) or names
        what = f"a pickle that calls {', '.join(listed[:5])}" if listed else "a pickle"
    return (
        f"expected plain tensors in {path}, got {what}; export it as safetensors, "
        "or add --allow-pickle if you trust it (it then runs in a child process)"
    )


def _load_weights_only(path: Path, allow_pickle: bool) -> object | None:
    """The content, or None when it needs the unsafe loader and that is allowed."""
    try:
        # Reading through a memory map keeps two copies of a large checkpoint out of memory; only zips support it.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if allow_pickle:
            return None
        if not dangerous(globals_in(path)):
            raise TargetError(
                f"expected a torch checkpoint, got {path} damaged or of another format; save it again"
            ) from error
        raise TargetError(refusal(path)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TargetError(
            f"expected a torch checkpoint, got {path} with '{reason}'; download or save it again"
        ) from error


def _refuse_impostors(path: Path, start: bytes) -> None:
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not text:
        raise TargetError(f"expected weights, got the empty file {path}; download it again")
    if text.startswith(b"<") and (b"<html" in text or b"<!doctype" in text or b"<head" in text or b"<?xml" in text):
        raise TargetError(
            f"expected weights, got a web page in {path}; the download was refused, open the link in a browser"
        )
    if text.startswith(b"version https://git-lfs"):
        raise TargetError(f"expected weights, got a git-lfs pointer in {path}; run `git lfs pull`")


def _is_package(path: Path) -> bool:
    markers = ("/.data/extern_modules", "serialized_exported_program.json", "models/model.json", "archive_format")
    return any(name.endswith(markers) for name in zip_names(path))
