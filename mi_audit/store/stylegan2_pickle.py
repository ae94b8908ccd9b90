"""Published StyleGAN2-ADA pickles, read without running what is in them.

Such a file carries the source text of its own classes and expects the reader to execute it. Here unpickling can make
nothing but dictionaries and inert records: every name in the file is looked up in a short list, source text is only
searched for the name of its owner, and tensors are built afterwards from checked sizes.
"""

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mi_audit.core.errors import TargetError

NVIDIA = "NVIDIA Source Code License: research or evaluation purposes only, passed on to whatever is derived from it"
UNKNOWN = "unknown: the file does not say; ask whoever published it"
NUMBERS = "biuf"  # kinds of plain numbers
DAMAGE = (  # what a damaged or hostile file can make its reader raise
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError,
    RuntimeError,
)  # fmt: skip


@dataclass(eq=False)
class Record:
    """A module of the file: its attributes, not its code."""

    name: str
    state: dict[str, Any]
    by_nvidia: bool

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers of the module and of those below it, by dotted name."""
        found: dict[str, Tensor] = {}
        for kind in ("_parameters", "_buffers"):
            for name, stored in _mapping(self.state.get(kind)).items():
                if isinstance(stored, _Stored):
                    found[prefix + name] = stored.tensor()
        for name, below in _mapping(self.state.get("_modules")).items():
            if isinstance(below, Record):
                found |= below.tensors(f"{prefix}{name}.")
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments the module was made with."""
        return dict(_mapping(self.state.get("_init_kwargs")))


@dataclass(eq=False)
class _Stored:
    """Where the numbers of a tensor lie in a serialised storage."""

    data: bytes
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        try:
            storage = torch.load(BytesIO(self.data), map_location="cpu", weights_only=True)
            flat = torch.tensor([], dtype=storage.dtype).set_(storage)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError) as error:
            raise TargetError(f"expected a storage of numbers, got '{error}'; do not open this file") from error
        last = self.offset + sum((extent - 1) * step for extent, step in zip(self.size, self.stride, strict=True))
        if min((self.offset, *self.size, *self.stride), default=0) < 0 or (0 not in self.size and last >= len(flat)):
            raise TargetError(
                f"expected a tensor inside its storage of {len(flat)} numbers, got {self.size}; get the file again"
            )
        if math.prod(self.size) > len(flat):  # a few stored numbers, repeated, could fill the memory
            raise TargetError(
                f"expected a tensor of at most the {len(flat)} stored numbers, got {self.size}; do not open this file"
            )
        return flat.as_strided(self.size, self.stride, self.offset).clone()


@dataclass(eq=False)
class _Kind:
    """A numeric type by its name."""

    name: str
    rest: tuple[object, ...] = field(default=())

    def __setstate__(self, state: object) -> None:
        del state  # byte order and alignment; little endian is checked by reading


class _Reader(pickle.Unpickler):
    """Resolves nothing but the names that such files need."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        found = _KNOWN.get((module, name))
        if found is None:
            raise TargetError(
                f"expected a StyleGAN2-ADA pickle, got a file that wants to call {module}.{name}; do not open it"
            )
        return found

    def persistent_load(self, pid: object) -> Any:  # noqa: ANN401
        raise TargetError(f"expected a file that is complete, got a reference to {pid!r}; get the file again")


def read_generator(path: Path) -> Record:
    """The averaged generator `G_ema` of a published pickle, as an inert record.

    Raises:
        TargetError: The file is missing or damaged, is of another format, or wants to call anything unexpected.
    """
    try:
        with path.open("rb") as file:
            content = _read(file)
    except OSError as error:
        raise TargetError(f"expected a StyleGAN2-ADA pickle, got '{error}'; correct the path") from error
    except DAMAGE as error:
        told = " ".join(str(error).split())
        raise TargetError(f"expected a StyleGAN2-ADA pickle, got {path} with '{told}'; get the file again") from error
    generator = content.get("G_ema") if isinstance(content, dict) else None
    if not isinstance(generator, Record):
        raise TargetError(f"expected a generator G_ema in {path}, got none; give a pickle of StyleGAN2-ADA for PyTorch")
    return generator


def licence_of(generator: Record) -> str:
    """What is known about the terms of the weights, for printing."""
    return NVIDIA if generator.by_nvidia else UNKNOWN


def _read(file: BinaryIO) -> object:
    return _Reader(file).load()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _record(meta: object) -> Record:
    facts = _mapping(meta)
    source = facts.get("module_src")
    return Record(
        str(facts.get("class_name")), dict(_mapping(facts.get("state"))), isinstance(source, str) and "NVIDIA" in source
    )


def _storage(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise TargetError("expected the bytes of a storage, got something else; do not open this file")
    return data


def _stored(data: object, offset: object, size: object, stride: object, *rest: object) -> _Stored:
    del rest  # whether it needs a gradient, and hooks
    numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
    if not isinstance(data, bytes) or not all(isinstance(number, int) for number in numbers):
        raise TargetError("expected a plain tensor, got something else; do not open this file")
    return _Stored(data, offset, size, stride)  # type: ignore[arg-type]


def _parameter(data: object, *rest: object) -> object:
    del rest
    return data


def _kind(name: str, *rest: object) -> _Kind:
    return _Kind(name, rest)


def _number(kind: object, data: object) -> float | int | bool:
    numeric = np.dtype(kind.name) if isinstance(kind, _Kind) and kind.name[:1] in NUMBERS else None
    if numeric is None or not isinstance(data, bytes) or len(data) != numeric.itemsize:
        raise TargetError("expected a plain number, got something else; do not open this file")
    return np.frombuffer(data, dtype=numeric)[0].item()


_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): dict,
    ("builtins", "set"): set,
    ("numpy", "dtype"): _kind,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _stored,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _record,
}
