"""From image files of any kind to square 8-bit pixels."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageOps, UnidentifiedImageError

from mi_audit.core.errors import DataError
from mi_audit.store.entries import Entry, Raster, Source

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # others run external programs or are no photographs
GREY = frozenset({"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"})
UNSUPPORTED = frozenset({"I", "F"})  # 32-bit pixels have no agreed range
PIXEL_LIMIT = 89_478_485  # pixels of one picture; beyond it a small file is a decompression bomb
CHUNK = 64  # images per task, so that small ones do not pay for the thread switch
BROKEN = (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error)

Block = TypeVar("Block")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an image without decoding it.

    Attributes:
        sha256: Of the file's bytes, or of the array's.
        channels: One for grey, three for colour.
        width, height: In pixels, as stored.
    """

    sha256: str
    channels: int
    width: int
    height: int


def survey(source: Source) -> list[Facts]:
    """Read every image once and look at its header.

    Raises:
        DataError: A file cannot be read, is damaged, or is larger than any photograph.
    """

    def look(entries: Sequence[Entry]) -> list[Facts]:
        return [_facts(source, entry) for entry in entries]

    return [facts for block in _in_threads(look, source.entries) for facts in block]


def decode(source: Source, entries: Sequence[Entry], size: int, channels: int) -> Iterator[UInt8[ndarray, "n c h w"]]:
    """Blocks of pixels, in the order of `entries`: turned upright, scaled, cut to the central square, recoloured.

    Raises:
        DataError: A file is damaged; the message names it.
    """

    def pixels(block: Sequence[Entry]) -> UInt8[ndarray, "n c h w"]:
        return np.stack([_pixels(source, entry, size, channels) for entry in block])

    return _in_threads(pixels, entries)


def upright(picture: Image.Image, name: str) -> Image.Image:
    """The picture as it is meant to be seen, grey (mode L) or RGB, 8 bit; an alpha channel is dropped.

    Raises:
        DataError: Its pixels have 32 bits.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # X-rays; PIL's own conversion clips at 255
        return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    return picture.convert("L" if channels_of(picture, name) == 1 else "RGB")


def square(picture: Image.Image, size: int) -> Image.Image:
    """The central square of a picture at `size` pixels, by antialiased bilinear interpolation."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def channels_of(picture: Image.Image, name: str) -> int:
    """One for a grey picture, three for one in colour, told by its mode and palette, not by its pixels.

    Raises:
        DataError: Its pixels have 32 bits.
    """
    if picture.mode in UNSUPPORTED:
        raise DataError(f"expected 8 or 16 bits per pixel, got 32 in {name}; convert it to an 8-bit PNG")
    if picture.mode == "P":
        colours = np.array(picture.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        return 1 if (colours == colours[:, :1]).all() else 3
    return 1 if picture.mode in GREY else 3


def _facts(source: Source, entry: Entry) -> Facts:
    content = entry.read()
    hashed = sha256(content if isinstance(content, bytes) else content.tobytes()).hexdigest()
    name = f"{source.origin}/{entry.name}"
    with _opened(content, name) as picture:
        return Facts(hashed, channels_of(picture, name), *picture.size)


def _pixels(source: Source, entry: Entry, size: int, channels: int) -> UInt8[ndarray, "c h w"]:
    name = f"{source.origin}/{entry.name}"
    with _opened(entry.read(), name) as picture:
        try:
            scaled = square(upright(picture, name), size).convert("L" if channels == 1 else "RGB")
        except BROKEN as error:
            raise _damaged(name, error) from error
    return np.atleast_3d(np.asarray(scaled)).transpose(2, 0, 1)


def _opened(content: bytes | Raster, name: str) -> Image.Image:
    if not isinstance(content, bytes):
        return Image.fromarray(content)
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise _damaged(name, error) from error
    if picture.width * picture.height > PIXEL_LIMIT:
        raise DataError(
            f"expected at most {PIXEL_LIMIT} pixels, got {picture.width} x {picture.height} in {name}; shrink it"
        )
    return picture


def _damaged(name: str, error: Exception) -> DataError:
    reason = "the file is not an image that can be read" if isinstance(error, UnidentifiedImageError) else error
    return DataError(f"expected an intact image, got {name} ({reason}); replace or remove it")


def _in_threads(work: Callable[[Sequence[Entry]], Block], entries: Sequence[Entry]) -> Iterator[Block]:
    blocks = [entries[start : start + CHUNK] for start in range(0, len(entries), CHUNK)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(work, blocks)
