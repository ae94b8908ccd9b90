"""Whether the attacker's images are the private ones: an audit with such a prior proves nothing."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mi_audit.core.dataset import Dataset
from mi_audit.core.types import Images

NEAR_BITS = 16  # of 128: a scaled or recompressed copy changes a few, another picture about half
CANDIDATES = 4  # public images compared pixel by pixel with each private one
SAME = 0.98  # correlation of two copies; different aligned faces stay below 0.975 at `COMPARED` pixels
COMPARED = 32  # side at which pixels are correlated: a scaled or recompressed copy differs in the fine detail only
CHUNK = 256
SHOWN = 3

Twins = Int64[Tensor, "t 2"]  # rows: a private image, its copy among the public ones


def overlap(private: Dataset, public: Dataset) -> str:
    """One sentence on the images that both data sets contain, the same file or a copy of it.

    Copies are found by equal pixels, or by average and difference hashes (8 x 8 bits each) that differ in few bits and
    pixels that, at 32 x 32, correlate by more than 0.98.
    """
    if _place(private.name) == _place(public.name):
        return f"the private and the public data are the same: {public.name}; choose other public images"
    exact = _equal(private, public)
    rest = torch.ones(len(private), dtype=torch.bool)
    rest[exact[:, 0]] = False
    near = _similar(private, rest.nonzero().squeeze(1), public)
    if not len(exact) + len(near):
        return (
            f"none found among {len(private)} x {len(public)} images "
            "(exact and near-identical pixels; the same person in another picture is not detected)"
        )
    pairs = [*_pairs(exact, private, public, "="), *_pairs(near, private, public, "~")]
    return (
        f"{len(exact) + len(near)} of {len(private)} private images are also in the public data "
        f"({len(exact)} identical, {len(near)} nearly identical), such as {', '.join(pairs[:SHOWN])}; "
        "remove them from the public data"
    )


def copies(data: Dataset, of: Dataset) -> Int64[Tensor, " n"]:
    """Rows of the images in `data` that are also in `of`, identical or nearly, in order."""
    if not len(data) or not len(of):
        return torch.zeros(0, dtype=torch.int64)
    exact = _equal(data, of)
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[exact[:, 0]] = False
    near = _similar(data, rest.nonzero().squeeze(1), of)
    return torch.cat([exact[:, 0], near[:, 0]]).sort().values


def _place(name: str) -> str:
    return str(Path(name).resolve())


def _pairs(twins: Twins, private: Dataset, public: Dataset, sign: str) -> Iterator[str]:
    for mine, theirs in twins[:SHOWN].tolist():
        yield f"{_name(private, mine)} {sign} {_name(public, theirs)}"


def _name(data: Dataset, row: int) -> str:
    return data.files[row] if data.files else f"{data.name}[{row}]"


def _equal(private: Dataset, public: Dataset) -> Twins:
    """Private images with a public one of exactly the same pixels."""
    known: dict[bytes, int] = {}
    if private.pixels.shape[1:] == public.pixels.shape[1:]:
        for row, image in enumerate(public.pixels.numpy()):
            known.setdefault(sha256(image.tobytes()).digest(), row)
    mine = (known.get(sha256(image.tobytes()).digest()) for image in private.pixels.numpy()) if known else ()
    found = [(row, twin) for row, twin in enumerate(mine) if twin is not None]
    return torch.tensor(found, dtype=torch.int64).view(-1, 2)


def _similar(private: Dataset, asked: Int64[Tensor, " n"], public: Dataset) -> Twins:
    """Of the private images in the rows `asked`, those with a public one of nearly the same pixels."""
    size = min(private.size, public.size, COMPARED)
    mine, theirs = _thumbnails(private, size), _thumbnails(public, size)
    known, found = _signs(theirs), [asked.new_empty(0, 2)]
    for rows in asked.split(CHUNK) if len(asked) else ():
        agreement, twins = (_signs(mine[rows]) @ known.T).topk(min(CANDIDATES, len(public)), dim=1)  # rows candidates
        close = agreement >= known.shape[1] - 2 * NEAR_BITS
        rows, twins = rows[:, None].expand_as(twins)[close], twins[close]
        same = _correlation(mine[rows], theirs[twins]) > SAME
        found.append(_first(torch.stack([rows[same], twins[same]], dim=1)))
    return torch.cat(found)


def _first(twins: Twins) -> Twins:
    """The first twin of every private image; rows are in order."""
    fresh = torch.ones(len(twins), dtype=torch.bool)
    fresh[1:] = twins[1:, 0] != twins[:-1, 0]
    return twins[fresh]


def _thumbnails(data: Dataset, size: int) -> Float[Tensor, "n 1 {size} {size}"]:
    """All images in grey at a small size, decoded a chunk at a time."""
    blocks = (slice(start, start + CHUNK) for start in range(0, len(data), CHUNK))
    return torch.cat([_resized(data.images(rows).mean(dim=1, keepdim=True), size, size) for rows in blocks])


def _signs(grey: Images) -> Float[Tensor, "b bits"]:
    """Average and difference hash as +1 and -1, so that a product counts the equal bits minus the others."""
    small, wide = _resized(grey, 8, 8).flatten(1), _resized(grey, 8, 9)
    above, rising = small > small.mean(dim=1, keepdim=True), (wide[..., 1:] > wide[..., :-1]).flatten(1)
    return torch.cat([above, rising], dim=1).float() * 2 - 1


def _resized(images: Images, height: int, width: int) -> Float[Tensor, "b c {height} {width}"]:
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


def _correlation(left: Images, right: Images) -> Float[Tensor, " b"]:
    """Pearson's, over the pixels of each pair; 0 for an image of one colour."""
    left, right = (x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True) for x in (left, right))
    return (left * right).sum(dim=1) / (left.norm(dim=1) * right.norm(dim=1)).clamp_min(1e-9)
