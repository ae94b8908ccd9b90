"""Image folders and zips of them: `<root>/<class>/*`, or the same below `train/`, `val/` and `test/`."""

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from mi_audit.core.errors import DataError
from mi_audit.store.entries import ALL, Entry, Part, Source

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"})
PARTS: Mapping[str, Part] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ORDER: tuple[Part, ...] = ("train", "val", "test")
FILE_LIMIT = 256 * 2**20  # bytes of one image file inside a zip; more is a bomb, not a picture


@dataclass(frozen=True, slots=True)
class Tree:
    """Files and folders below a root that is itself in no name.

    Attributes:
        origin: The folder or zip, for messages.
        folders, files: Names relative to the root, with forward slashes.
        read: The bytes of a file.
    """

    origin: str
    folders: frozenset[str]
    files: frozenset[str]
    read: Callable[[str], bytes]

    def below(self, folder: str) -> "Tree":
        """The subtree under `folder`."""
        start = folder + "/"
        folders = frozenset(name.removeprefix(start) for name in self.folders if name.startswith(start))
        files = frozenset(name.removeprefix(start) for name in self.files if name.startswith(start))
        return Tree(f"{self.origin}/{folder}", folders, files, read=lambda name: self.read(start + name))

    def tops(self) -> list[str]:
        """Folders directly below the root, in lexical order."""
        return sorted(name for name in self.folders if "/" not in name)

    def images(self) -> list[str]:
        """Image files at any depth, in lexical order."""
        return sorted(name for name in self.files if PurePosixPath(name).suffix.lower() in SUFFIXES)

    def loose(self) -> list[str]:
        """Image files directly below the root."""
        return [name for name in self.images() if "/" not in name]


def read_folder(ref: str, *, labelled: bool) -> Source:
    """The images below a folder.

    Raises:
        DataError: It is missing, empty, unreadable, or not divided into classes although `labelled`.
    """
    root = Path(ref)
    return _arrange(Tree(ref, *_walk(root), read=partial(_read_file, root)), ref, labelled=labelled)


def read_zip(ref: str, *, labelled: bool) -> Source:
    """The images inside a zip, read in place; nothing is extracted to the disk.

    Raises:
        DataError: It is no zip, encrypted, unsafe, empty, or not divided into classes although `labelled`.
    """
    try:
        archive = zipfile.ZipFile(ref)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"expected a zip of images, got {ref} ({error}); check the file or give the folder") from error
    files = {info.filename: info for info in archive.infolist() if not info.is_dir() and _visible(info.filename)}
    for info in files.values():
        _refuse_unsafe(ref, info)
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    folders |= {info.filename.rstrip("/") for info in archive.infolist() if info.is_dir() and _visible(info.filename)}
    tree = Tree(ref, frozenset(folders), frozenset(files), read=lambda name: _read_member(archive, files[name]))
    return _arrange(tree, ref, labelled=labelled)


def _arrange(tree: Tree, ref: str, *, labelled: bool) -> Source:
    """Find the classes of a tree, below as many single folders as wrap them."""
    prefix = ""
    while _is_wrapper(tree):
        prefix, tree = prefix + tree.tops()[0] + "/", tree.below(tree.tops()[0])
    if not tree.images():
        raise DataError(f"expected images in {tree.origin}, got none; put them into {tree.origin}/<class>/")
    parts = _parts(tree)
    classes = tuple(sorted({name for part in parts.values() for name in part.tops()}))
    if not classes:
        if labelled:
            raise DataError(
                f"expected class folders, got images only in {tree.origin}; sort them into {tree.origin}/<class>/"
            )
        classes = (ALL,)
    entries = (
        Entry(prefix + start + name, label, PARTS.get(start.rstrip("/"), "train"), partial(tree.read, start + name))
        for start, part in sorted(parts.items(), key=lambda item: ORDER.index(PARTS.get(item[0].rstrip("/"), "train")))
        for name, label in _labelled(part, classes)
    )
    source = Source(ref, classes, tuple(entries), in_files=True)
    _refuse_untaught(source)
    return source


def _is_wrapper(tree: Tree) -> bool:
    tops = tree.tops()
    return len(tops) == 1 and not tree.loose() and bool(tree.below(tops[0]).tops()) and not tree.below(tops[0]).loose()


def _parts(tree: Tree) -> dict[str, Tree]:
    """The divisions of the tree by folder name with its slash; the tree itself, without a name, when it has none."""
    tops = tree.tops()
    if "train" in tops and set(tops) <= set(PARTS):
        return {top + "/": tree.below(top) for top in tops}
    return {"": tree}


def _labelled(tree: Tree, classes: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Images with their labels, by class and name."""
    if classes == (ALL,) and not tree.tops():
        yield from ((name, 0) for name in tree.images())
        return
    if tree.loose():
        raise DataError(
            f"expected images inside class folders, got {tree.origin}/{tree.loose()[0]} beside them; move or remove it"
        )
    groups: dict[str, list[str]] = {folder: [] for folder in tree.tops()}
    for name in tree.images():
        groups[name.partition("/")[0]].append(name)
    numbers = {folder: label for label, folder in enumerate(classes)}
    for folder, names in groups.items():
        if not names:
            raise DataError(
                f"expected images in the class folder {tree.origin}/{folder}, got none; add images or remove the folder"
            )
        yield from ((name, numbers[folder]) for name in names)


def _refuse_untaught(source: Source) -> None:
    taught = {entry.label for entry in source.entries if entry.part == "train"}
    for entry in source.entries:
        if entry.label not in taught:
            raise DataError(
                f"expected every class in train/, got the class '{source.classes[entry.label]}' only in {entry.part}/ "
                f"({source.origin}/{entry.name}); add it to train/ or remove it"
            )


def _visible(name: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) and part != ".." for part in name.split("/"))


def _walk(root: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Folders and files below `root`; links are followed, but never into a folder that contains them."""
    folders, files, above = set(), set(), {str(root): frozenset({root.resolve()})}
    for current, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_unreadable):
        here = Path(current)
        kept = []
        for name in subfolders:
            real = (here / name).resolve()
            if _visible(name) and real not in above[current]:
                kept.append(name)
                above[str(here / name)] = above[current] | {real}
        subfolders[:] = kept
        start = here.relative_to(root)
        folders |= {(start / name).as_posix() for name in kept}
        files |= {(start / name).as_posix() for name in names if _visible(name)}
    return frozenset(folders), frozenset(files)


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(
        f"expected a readable folder, got {error.filename}: {error.strerror}; fix its permissions"
    ) from error


def _read_file(root: Path, name: str) -> bytes:
    try:
        return (root / name).read_bytes()
    except OSError as error:
        raise DataError(
            f"expected a readable image, got {root / name}: {error.strerror}; fix its permissions or remove it"
        ) from error


def _refuse_unsafe(ref: str, info: zipfile.ZipInfo) -> None:
    if ".." in info.filename.split("/") or info.filename.startswith("/") or re.match(r"[A-Za-z]:|.*\\", info.filename):
        raise DataError(f"expected names below the zip, got {info.filename} in {ref}; pack it again")
    if info.flag_bits & 1:
        raise DataError(f"expected a zip without a password, got an encrypted {info.filename} in {ref}; decrypt it")
    if info.file_size > FILE_LIMIT:
        raise DataError(f"expected images below {FILE_LIMIT >> 20} MiB, got {info.filename} in {ref}; remove it")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise DataError(
            f"expected an intact zip, got a damaged {info.filename} in {archive.filename} ({error}); pack it again"
        ) from error
