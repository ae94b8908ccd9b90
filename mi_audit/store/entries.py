"""What a data reference points to, before anything is decoded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from jaxtyping import UInt8
from numpy import ndarray

from mi_audit.core.errors import DataError

Part = Literal["train", "val", "test"]
Raster = UInt8[ndarray, "h w"] | UInt8[ndarray, "h w 3"]

ALL = "all"  # the class of images that have none


class Entry(NamedTuple):
    """One image somewhere; there may be millions.

    Attributes:
        name: Relative to the reference, for the fingerprint and for messages.
        label: Index into the classes.
        part: Where the owner put it; everything is `train` when there is no division.
        read: The bytes of an image file, or its pixels.
    """

    name: str
    label: int
    part: Part
    read: Callable[[], bytes | Raster]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """All images of a reference.

    Attributes:
        origin: The folder, file or name of the data set, for messages.
        classes: Names in label order.
        entries: In the order train, val, test; within a part by class, then by name.
        in_files: Whether names are names of files under `origin`.
    """

    origin: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    in_files: bool = False

    def only(self, chosen: str) -> "Source":
        """The classes with the indices `chosen`, such as `0-4` or `0,3,7`, relabelled from 0 under their names.

        Raises:
            DataError: There is no such class.
        """
        kept = sorted(set(_indices(chosen)))
        if not kept or kept[-1] >= len(self.classes):
            raise DataError(
                f"expected class indices from 0 to {len(self.classes) - 1} such as :0-4 or :0,3,7, got :{chosen}; "
                f"change the end of {self.origin}:{chosen}"
            )
        new = {label: position for position, label in enumerate(kept)}
        entries = tuple(entry._replace(label=new[entry.label]) for entry in self.entries if entry.label in new)
        classes = tuple(self.classes[label] for label in kept)
        return replace(self, classes=classes, entries=entries)


def _indices(chosen: str) -> Iterator[int]:
    for piece in chosen.split(","):
        first, _, last = piece.partition("-")
        yield from range(int(first), int(last or first) + 1)
