"""Images that come as arrays: `.npz` files and scikit-learn's bundled digits."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain

import numpy as np
from jaxtyping import Integer, Shaped, UInt8
from numpy import ndarray

from mi_audit.core.errors import DataError
from mi_audit.store.entries import ALL, Entry, Part, Raster, Source

IMAGES = ("images", "x", "imgs", "image")
LABELS = ("labels", "label", "y", "subject", "subjects", "targets", "target")
CLASSES = ("classes", "class_names")
MASK = "is_test"
DIGIT_LEVELS = 16  # the digits are counts of ink in 4 x 4 cells
SPELLINGS: Mapping[Part, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def read_npz(ref: str, *, labelled: bool) -> Source:
    """The arrays `images` and `labels` of an `.npz`, or `x_train`, `y_train`, `x_test` and `y_test`.

    An array `is_test` divides the former. Without labels for all of them, every image is of the class `all`.

    Raises:
        DataError: The file is damaged, holds no images, or its arrays do not fit together.
    """
    arrays = _load(ref)
    blocks = list(_blocks(ref, arrays))
    if not blocks:
        raise DataError(
            f"expected arrays `images` and `labels`, or `x_train` and `y_train`, got {sorted(arrays)} in {ref}; "
            "rename them"
        )
    answers = [labels for _, _, labels, _ in blocks if labels is not None]
    if len(answers) < len(blocks):
        if labelled:
            raise DataError(f"expected an array `labels` beside the images, got {sorted(arrays)} in {ref}; add one")
        rows = (_entries(key, images, np.zeros(len(images), int), parts) for key, images, _, parts in blocks)
        return Source(ref, (ALL,), tuple(chain.from_iterable(rows)))
    values, ids = np.unique(np.concatenate(answers), return_inverse=True)
    shares = np.split(ids, np.cumsum([len(labels) for labels in answers])[:-1])
    rows = (_entries(key, images, share, parts) for (key, images, _, parts), share in zip(blocks, shares, strict=True))
    return Source(ref, _class_names(ref, arrays, values), tuple(_in_order(chain.from_iterable(rows))))


def read_digits(ref: str) -> Source:
    """The handwritten digits that come with scikit-learn: 1797 grey images of 8 x 8 pixels, classes 0 to 9."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / DIGIT_LEVELS)).astype(np.uint8)
    entries = _entries("digits", images, bunch.target, ["train"] * len(images))
    return Source(ref, tuple(map(str, range(10))), tuple(_in_order(entries)))


def to_bytes(name: str, images: Shaped[ndarray, "n *hw"]) -> UInt8[ndarray, "n *hw"]:
    """Pixels as 8 bit, from 8 bit, from integers in 0..255 or from floating point in [0, 1].

    Raises:
        DataError: They are of another type or leave that range; the message names the array.
    """
    if images.dtype == np.uint8:
        return images
    real, whole = np.issubdtype(images.dtype, np.floating), np.issubdtype(images.dtype, np.integer)
    if not real and not whole:
        raise DataError(f"expected pixels as uint8 or as floats in [0, 1], got {images.dtype} in {name}; convert them")
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    top = 1.0 if real else 255.0
    if not (low >= 0 and high <= top):
        raise DataError(f"expected pixels in [0, {top:g}], got [{low:g}, {high:g}] in {name}; rescale them")
    return np.rint(images * 255).astype(np.uint8) if real else images.astype(np.uint8)


Block = tuple[str, Shaped[ndarray, "n *hw"], Shaped[ndarray, " n"] | None, list[Part]]


def _load(ref: str) -> dict[str, Shaped[ndarray, "..."]]:
    try:
        with np.load(ref, allow_pickle=False) as archive:
            return {key.lower(): archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"expected an .npz of plain arrays, got {ref} ({error}); save it again with numpy.savez"
        ) from error


def _blocks(ref: str, arrays: Mapping[str, Shaped[ndarray, "..."]]) -> Iterator[Block]:
    """Each array of images with its labels and parts."""
    key = next((name for name in IMAGES if name in arrays), None)
    if key is not None:
        labels = next((arrays[name] for name in LABELS if name in arrays), None)
        mask = arrays.get(MASK, np.zeros(len(arrays[key]), bool))
        yield _block(
            ref, key, arrays[key], labels, ["test" if held else "train" for held in mask.astype(bool).tolist()]
        )
        return
    for part, spellings in SPELLINGS.items():
        pairs = [(f"{a}_{s}", f"{s}_{a}") for s in spellings for a in IMAGES]
        key = next((name for pair in pairs for name in pair if name in arrays), None)
        answers = [name for s in spellings for a in LABELS for name in (f"{a}_{s}", f"{s}_{a}")]
        if key is not None:
            labels = next((arrays[name] for name in answers if name in arrays), None)
            yield _block(ref, key, arrays[key], labels, [part] * len(arrays[key]))


def _block(
    ref: str, key: str, images: Shaped[ndarray, "..."], labels: Shaped[ndarray, "..."] | None, parts: list[Part]
) -> Block:
    name = f"{ref}[{key}]"
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        images = np.moveaxis(images, 1, -1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise DataError(
            f"expected images of shape (n, h, w) or (n, h, w, 3), got {images.shape} in {name}; reshape them"
        )
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if labels is not None:
        labels = labels.reshape(len(labels), -1)[:, 0] if labels.size == len(labels) else labels
        if labels.shape != (len(images),):
            raise DataError(
                f"expected one label per image, got {len(images)} images and labels of shape {labels.shape} in {name}; "
                "save them together again"
            )
    if len(parts) != len(images):
        raise DataError(
            f"expected `{MASK}` per image, got {len(parts)} for {len(images)} images in {name}; save it again"
        )
    return key, to_bytes(name, images), labels, parts


def _class_names(
    ref: str, arrays: Mapping[str, Shaped[ndarray, "..."]], values: Shaped[ndarray, " k"]
) -> tuple[str, ...]:
    names = next((arrays[key] for key in CLASSES if key in arrays), None)
    if names is None:
        return tuple(map(str, values.tolist()))
    if names.shape != values.shape:
        raise DataError(
            f"expected {len(values)} class names, one per label value, got {names.shape} in {ref}; correct them"
        )
    return tuple(map(str, names.tolist()))


def _entries(
    key: str, images: UInt8[ndarray, "n *hw"], labels: Integer[ndarray, " n"], parts: list[Part]
) -> list[Entry]:
    def pixels(row: int) -> Raster:
        return images[row]

    rows = enumerate(zip(labels.tolist(), parts, strict=True))
    return [Entry(f"{key}[{row}]", label, part, partial(pixels, row)) for row, (label, part) in rows]


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    order = tuple(SPELLINGS)
    return sorted(entries, key=lambda entry: (order.index(entry.part), entry.label))
