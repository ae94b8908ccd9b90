"""Which images a model learns from, is chosen on, and is reported on."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import torch

from mi_audit.core.dataset import Dataset, Splits
from mi_audit.core.errors import DataError
from mi_audit.store.entries import Part
from mi_audit.store.files import digest

PERCENT = 15  # of a class, for each part that is carved out of the training images
FEWEST = 4  # images of a class from which one is held back even if 15 % is less


def divide(labels: Sequence[int], parts: Sequence[Part], keys: Sequence[str], seed: int) -> list[Part]:
    """Carve the parts that nobody provided, test and val, out of the images marked `train`.

    Within a class the images are ordered by a hash of seed and key and the first ones held back, so the division
    depends neither on the order of the images nor on other classes.

    Args:
        labels: Class of each image.
        parts: Where the owner of the data put each image.
        keys: What identifies each image: a hash of its content.
        seed: Another seed, another division.
    """
    divided = list(parts)
    carved: tuple[Part, ...] = ("test", "val")
    missing = [part for part in carved if part not in parts]
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        if parts[row] == "train":
            rows.setdefault(label, []).append(row)
    for members in rows.values():
        members.sort(key=lambda row: (sha256(f"{seed}/{keys[row]}".encode()).digest(), row))
        held = max(1, (PERCENT * len(members) + 50) // 100) if len(members) >= FEWEST else 0
        for place, part in enumerate(missing):
            for row in members[place * held : (place + 1) * held]:
                divided[row] = part
    return divided


def split(data: Dataset, seed: int) -> Splits:
    """Divide a data set that came undivided into 70 % train, 15 % val and 15 % test of every class.

    Raises:
        DataError: No class is large enough to hold an image back.
    """
    labels = data.labels.tolist()
    keys = [sha256(image.tobytes()).hexdigest() for image in data.pixels.numpy()]
    divided = divide(labels, ["train"] * len(labels), keys, seed)
    refuse_empty(data.name, divided)

    def part(name: Part) -> Dataset:
        rows = torch.tensor([row for row, home in enumerate(divided) if home == name])
        return replace(data.select(rows), fingerprint=digest(data.fingerprint, name, seed))

    return Splits(part("train"), part("val"), part("test"))


def refuse_empty(name: str, divided: Sequence[Part]) -> None:
    """Check that every part has an image.

    Raises:
        DataError: A part has none.
    """
    for part in ("train", "val", "test"):
        if part not in divided:
            raise DataError(
                f"expected a class with {FEWEST} images or more in {name} to hold some back, got none for {part}; "
                f"add images, or a folder {part}/ beside train/"
            )
