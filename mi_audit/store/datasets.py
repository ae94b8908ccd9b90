"""Labelled images from folders, zips, arrays and data sets known by name."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mi_audit.core.dataset import Dataset, Splits
from mi_audit.core.errors import DataError
from mi_audit.core.types import Pixels
from mi_audit.store.arrays import read_digits, read_npz
from mi_audit.store.cache import Cache
from mi_audit.store.entries import Entry, Part, Source
from mi_audit.store.files import digest, replacing
from mi_audit.store.folders import read_folder, read_zip
from mi_audit.store.named import PREFIXES, read_named
from mi_audit.store.overlap import overlap
from mi_audit.store.pictures import Facts, decode, survey
from mi_audit.store.splits import divide, refuse_empty

__all__ = ["load_dataset", "load_splits", "overlap"]

READER = 1  # raised whenever the same files would give other pixels
MAPPED = 2**30  # bytes of pixels beyond which they stay on the disk
SUBSET = re.compile(r"(?P<ref>.+):(?P<classes>\d+(-\d+)?(,\d+(-\d+)?)*)")


def load_splits(
    ref: str,
    size: int | None,
    channels: int | None,
    *,
    convert_color: bool = False,
    seed: int = 0,
    cache: Cache | None = None,
) -> Splits:
    """Labelled images divided into train, val and test; parts that the data lack are carved out of train.

    The images are turned upright, scaled so that the shorter side is `size`, and cut to the central square. Each
    missing part takes 15 % of every class, chosen by a hash of content and `seed`.

    Args:
        ref: A folder or zip of class folders, an `.npz`, `digits`, or a name that timm knows; `:0-4` or `:0,3,7` at its
            end keeps some classes.
        size: Height and width in pixels; None takes the images' own.
        channels: One or three; None takes three when any image is in colour.
        convert_color: Turn grey images into RGB and back instead of refusing them.
        seed: Of the division.
        cache: Where pixels beyond 1 GiB are kept; without it they stay in memory.

    Raises:
        DataError: The data are missing, damaged, too few, of one class or of other colours; the message names it.
    """
    source = _source(ref, size, labelled=True)
    if len(source.classes) < 2:
        raise DataError(
            f"expected two classes or more, got only '{source.classes[0]}' in {ref}; give the folder that holds the "
            "class folders"
        )
    facts = survey(source)
    labels, parts = [entry.label for entry in source.entries], [entry.part for entry in source.entries]
    divided = divide(labels, parts, [fact.sha256 for fact in facts], seed)
    refuse_empty(ref, divided)
    order: tuple[Part, ...] = ("train", "val", "test")
    rows = sorted(range(len(divided)), key=lambda row: order.index(divided[row]))
    entries = [source.entries[row]._replace(part=divided[row]) for row in rows]
    source, facts = replace(source, entries=tuple(entries)), [facts[row] for row in rows]
    whole = _dataset(ref, source, facts, size, channels, convert_color=convert_color, cache=cache)
    ends = np.cumsum([divided.count(part) for part in order]).tolist()
    train, val, test = (_slice(whole, source, facts, slice(*bounds)) for bounds in zip([0, *ends], ends, strict=False))
    return Splits(train, val, test)


def load_dataset(
    ref: str,
    size: int | None,
    channels: int | None,
    *,
    convert_color: bool = False,
    cache: Cache | None = None,
) -> Dataset:
    """All images of a reference, with labels if it has them, else in one class `all`; arguments as for `load_splits`.

    Raises:
        DataError: The data are missing, damaged, or of other colours; the message names the file.
    """
    source = _source(ref, size, labelled=False)
    return _dataset(ref, source, survey(source), size, channels, convert_color=convert_color, cache=cache)


def _source(ref: str, size: int | None, *, labelled: bool) -> Source:
    """What a reference means: a path if there is one, else a built-in, else a name for timm."""
    parsed = None if Path(ref).exists() else SUBSET.fullmatch(ref)
    if parsed:
        return _source(parsed["ref"], size, labelled=labelled).only(parsed["classes"])
    path = Path(ref)
    if ref == "digits":
        return read_digits(ref)
    if path.is_dir():
        return read_folder(ref, labelled=labelled)
    if path.suffix.lower() == ".npz" and path.is_file():
        return read_npz(ref, labelled=labelled)
    if path.suffix.lower() == ".zip" and path.is_file():
        return read_zip(ref, labelled=labelled)
    if path.exists():
        raise DataError(
            f"expected a folder, a .zip or an .npz, got the file {ref}; give the folder that holds the images"
        )
    if ref.startswith(PREFIXES):
        return read_named(ref, size, labelled=labelled)
    raise DataError(
        f"expected an existing folder, .zip or .npz, `digits`, or a name such as hfds/NAME or torch/NAME, got {ref}; "
        "check the path"
    )


def _dataset(
    ref: str,
    source: Source,
    facts: Sequence[Facts],
    size: int | None,
    channels: int | None,
    *,
    convert_color: bool,
    cache: Cache | None,
) -> Dataset:
    side, depth = _side(source, facts, size), _depth(source, facts, channels, convert_color=convert_color)
    fingerprint = _fingerprint(source, source.entries, facts, side, depth)
    return Dataset(
        name=ref,
        pixels=_pixels(source, side, depth, fingerprint, cache),
        labels=torch.tensor([entry.label for entry in source.entries], dtype=torch.int64),
        classes=source.classes,
        fingerprint=fingerprint,
        files=tuple(f"{source.origin}/{entry.name}" for entry in source.entries) if source.in_files else (),
    )


def _slice(whole: Dataset, source: Source, facts: Sequence[Facts], rows: slice) -> Dataset:
    """Consecutive rows as a view: fancy indexing would copy a memory-mapped file into memory."""
    return replace(
        whole,
        pixels=whole.pixels[rows],
        labels=whole.labels[rows],
        files=whole.files[rows],
        fingerprint=_fingerprint(source, source.entries[rows], facts[rows], whole.size, whole.channels),
    )


def _fingerprint(source: Source, entries: Sequence[Entry], facts: Sequence[Facts], size: int, channels: int) -> str:
    images = [[entry.name, entry.label, fact.sha256] for entry, fact in zip(entries, facts, strict=True)]
    return digest("data", READER, size, channels, source.classes, images)


def _side(source: Source, facts: Sequence[Facts], size: int | None) -> int:
    if size is not None:
        return size
    width, height = facts[0].width, facts[0].height
    for entry, fact in zip(source.entries, facts, strict=True):
        if (fact.width, fact.height) != (width, height):
            raise DataError(
                f"expected images of {width} x {height} pixels like the first, got {fact.width} x {fact.height} in "
                f"{source.origin}/{entry.name}; give --size"
            )
    return min(width, height)


def _depth(source: Source, facts: Sequence[Facts], channels: int | None, *, convert_color: bool) -> int:
    """Channels to decode to, once it is certain that no image has to be recoloured in silence."""
    wanted = channels or max(fact.channels for fact in facts)
    words = {1: "grey", 3: "RGB"}
    for entry, fact in zip(source.entries, facts, strict=True):
        if fact.channels != wanted and not convert_color:
            raise DataError(
                f"expected {words[wanted]} images, got a {words[fact.channels]} one: {source.origin}/{entry.name}; "
                "give --convert-color to convert it, or remove it"
            )
    return wanted


def _pixels(source: Source, size: int, channels: int, fingerprint: str, cache: Cache | None) -> Pixels:
    """Decoded images, in memory or, beyond `MAPPED` bytes, as a private map of a file in the cache."""
    shape = (len(source.entries), channels, size, size)
    blocks = decode(source, source.entries, size, channels)
    if cache is None or math.prod(shape) <= MAPPED:
        return torch.from_numpy(np.concatenate(list(blocks)))
    file = cache.folder("pixels", fingerprint) / "pixels.u8"
    if not file.is_file() or file.stat().st_size != math.prod(shape):
        with replacing(file, private=True) as draft:
            for block in blocks:
                draft.write(np.ascontiguousarray(block).data)
    # copy on write: torch has no read-only tensors, and nobody may change the cache through one
    return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="c", shape=shape))
