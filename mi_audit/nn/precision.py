"""Which arithmetic a device is fast at."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["32", "bf16", "auto"]


def has_native_bf16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 in hardware; emulated bfloat16 is slower than single precision."""
    match torch.device(device).type:
        case "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        case _:
            return False


def autocast(device: str, precision: Precision) -> torch.autocast:
    """Mixed bfloat16 when asked for, or when `auto` finds it native on `device`; otherwise single precision."""
    mixed = precision == "bf16" or (precision == "auto" and has_native_bf16(device))
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=mixed)


@contextmanager
def single(device: str) -> Iterator[None]:
    """True single precision inside, for differences below 1e-3: no autocast, no convolutions with TF32's ten bits."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with autocast(device, "32"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
