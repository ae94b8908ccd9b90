"""Pictures as 8-bit PNG: what is measured is what was written."""

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mi_audit.core.errors import Diverged, StorageError
from mi_audit.core.types import Images, Pixels
from mi_audit.store.files import read_file, write_atomic

WHITE = 255


def quantise(images: Images) -> Pixels:
    """Clamp to [0, 1] and round half to even to 0..255.

    Raises:
        Diverged: A pixel is NaN, which no picture can show.
    """
    if images.isnan().any():
        raise Diverged("expected images of finite pixels, got NaN; lower the step size of the attack")
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def write_png(path: Path, pixels: UInt8[Tensor, "c h w"]) -> None:
    """Write one grey (c = 1) or RGB (c = 3) picture, readable by its owner only: it may show a person.

    Raises:
        StorageError: The file could not be written.
    """
    rows = pixels.cpu().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(rows[..., 0] if len(pixels) == 1 else rows).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue(), private=True)


def read_png(path: Path) -> UInt8[Tensor, "c h w"]:
    """The picture that `write_png` wrote, bit for bit.

    Raises:
        StorageError: The file is missing, damaged, or not a grey or RGB PNG.
    """
    data = read_file(path)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            mode, rows = picture.mode, np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise StorageError(
            f"expected a PNG picture, got a damaged file {path}; delete it and repeat the run"
        ) from error
    if mode not in ("L", "RGB"):
        raise StorageError(f"expected a grey or RGB picture, got mode {mode} in {path}; delete it and repeat the run")
    return torch.from_numpy(np.atleast_3d(rows)).permute(2, 0, 1)


def contact_sheet(pixels: UInt8[Tensor, "n c h w"], columns: int) -> UInt8[Tensor, "c H W"]:
    """Lay `n` >= 1 pictures out row by row without gaps; unused places of the last row are white."""
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = pixels.new_full((rows * columns, channels, height, width), WHITE)
    sheet[:count] = pixels
    grid = sheet.view(rows, columns, channels, height, width)
    return grid.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
