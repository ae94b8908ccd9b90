"""Data sets known by name: whatever `timm.data.create_dataset` reads."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from mi_audit.core.errors import DataError
from mi_audit.store.entries import ALL, Entry, Part, Raster, Source
from mi_audit.store.pictures import square, upright

PREFIXES = ("hfds/", "hfids/", "wds/", "tfds/", "torch/")
FOLDERS = ("torch/folder", "torch/image_folder")
HELD_BACK = ("test", "validation")
ABSENT = (ValueError, KeyError, FileNotFoundError)  # how the readers say that a split does not exist
REFUSALS = (*ABSENT, OSError, RuntimeError, AssertionError, ImportError)

Samples = Dataset[tuple[Image.Image, int]]
Row = tuple[Part, Raster, int]


def read_named(ref: str, size: int | None, *, labelled: bool) -> Source:
    """The images of `NAME` or `NAME@FOLDER`, where NAME is `hfds/...`, `wds/...`, `torch/cifar10` and the like.

    The split called train is `train`; one called test, else validation, is `test`. The images stay in memory, scaled to
    `size` when it is given. The `torch/` sets must lie in FOLDER already; the others fetch what their library fetches.

    Raises:
        DataError: There is no such data set, a library for it is missing, or it has no labels although `labelled`.
    """
    name, _, root = ref.partition("@")
    if name in FOLDERS:
        raise DataError(f"expected the folder itself, got {ref}; write {root or 'its path'}")
    train = _open(ref, name, root, "train")
    rows = list(_rows(ref, "train", train, size))
    for split in HELD_BACK:
        held = _open_if_present(ref, name, root, split)
        if held is not None:
            rows += _rows(ref, "test", held, size)
            break
    if not rows:
        raise DataError(f"expected images in {ref}, got none; check the name")
    classes = _class_names(train, rows)
    if labelled and classes == (ALL,):
        raise DataError(f"expected labels in {ref}, got none; name a data set with labels")
    entries = (
        Entry(f"{part}[{row}]", max(label, 0), part, partial(_same, pixels))
        for row, (part, pixels, label) in enumerate(rows)
    )
    return Source(ref, classes, tuple(sorted(entries, key=lambda entry: (entry.part == "test", entry.label))))


def _open(ref: str, name: str, root: str, split: str) -> Samples:
    from timm.data.dataset_factory import create_dataset

    try:
        # an empty input mode keeps the colours: a conversion here would hide a mismatch
        return create_dataset(name, root=root or ".", split=split, download=False, input_img_mode="")
    except REFUSALS as error:
        raise DataError(
            f"expected a folder, a zip, an .npz, digits or a data set that timm can read, got {ref} ({error}); "
            "check the name, install what it needs, or give its folder as NAME@FOLDER"
        ) from error


def _open_if_present(ref: str, name: str, root: str, split: str) -> Samples | None:
    try:
        return _open(ref, name, root, split)
    except DataError as error:
        if isinstance(error.__cause__, ABSENT):
            return None
        raise


def _rows(ref: str, part: Part, samples: Samples, size: int | None) -> Iterator[Row]:
    for number, (picture, label) in enumerate(_each(samples)):
        image = upright(picture, f"{ref}[{part}][{number}]")
        yield part, np.asarray(image if size is None else square(image, size)), int(label)


def _each(samples: Samples) -> Iterator[tuple[Image.Image, int]]:
    """Every sample once; the map-style sets know their length but not where to stop."""
    if isinstance(samples, IterableDataset):
        yield from samples
    else:
        yield from (samples[row] for row in range(len(samples)))  # type: ignore[arg-type]


def _class_names(samples: Samples, rows: list[Row]) -> tuple[str, ...]:
    """Names in label order from the data set or its reader, else the numbers; one class when there are no labels."""
    labels = {label for _, _, label in rows}
    if min(labels) < 0:
        return (ALL,)
    reader = getattr(samples, "reader", samples)
    numbers = getattr(reader, "class_to_idx", None)
    if isinstance(numbers, Mapping) and labels <= set(numbers.values()):
        return tuple(str(name) for name, _ in sorted(numbers.items(), key=lambda item: int(item[1])))
    return tuple(map(str, range(1 + max(labels))))


def _same(pixels: Raster) -> Raster:
    return pixels
