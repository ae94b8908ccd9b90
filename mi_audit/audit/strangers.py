"""Private data without the attacked people: what a target that never met them is trained on.

Why somebody else takes their outputs: an output without images only ever learns to say no. An attack on it has nobody
to find, does not converge and yields noise, which no judge takes for anybody; a floor measured there is too low and
makes everything above it look like a leak. With a stranger in the slot everything but the link between output and
person stays as it was: the number of outputs and of training images, a person to find, pictures of a person as the
result. What the judge then takes for the attacked person is due to prior, search, judge and chance resemblance. The
strangers are drawn anew for every seed, so that no single resemblance makes the floor. They come from the public data,
because private people who are not attacked hold an output already; so the prior has seen them, and attacks may find
them somewhat more easily than private people. All attacked people are left out together: one model instead of one per
person. An output stays empty only where there is no stranger for it, and reports say so.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from mi_audit.audit.pretrain import is_labelled, labelled_public
from mi_audit.audit.scene import whole
from mi_audit.core.dataset import Dataset, Splits
from mi_audit.store.files import digest
from mi_audit.store.overlap import copies

NOBODY = "nobody"  # name of an output without images
Need = tuple[int, int, int]  # train, val and test images of a person


@dataclass(frozen=True, slots=True, eq=False)
class Purged:
    """All data without the attacked people; their outputs are still empty.

    Attributes:
        splits: Private images, without those of attacked classes and without copies of them in other classes.
        public: Public images, without copies of theirs and without classes that bear their names.
        needs: Train, val and test images of every attacked class.
    """

    splits: Splits
    public: Dataset
    needs: Mapping[int, Need]


@dataclass(frozen=True, slots=True, eq=False)
class Seating:
    """Training data of one counterfactual target.

    Attributes:
        splits: `test` holds private people who are not attacked, or strangers when all are.
        strangers: Public class in the output of each attacked class; an output without one is empty.
        short: Outputs whose stranger has fewer images than the attacked person had.
    """

    splits: Splits
    strangers: Mapping[int, str]
    short: tuple[int, ...]


def purged(splits: Splits, public: Dataset, attacked: Sequence[int]) -> Purged:
    """Private and public data without the people in `attacked`, as far as pictures and names tell who they are."""
    private = whole(splits)
    theirs = private.select(torch.isin(private.labels, torch.tensor(attacked)).nonzero().squeeze(1))
    names = [private.classes[label] for label in attacked]
    parts = (splits.train, splits.val, splits.test)
    counts = [part.labels.bincount(minlength=len(private.classes)) for part in parts]
    train, val, test = (_others(part, attacked, theirs) for part in parts)
    same_name = [label for label, name in enumerate(public.classes) if name in names]
    needs: dict[int, Need] = {
        label: (int(counts[0][label]), int(counts[1][label]), int(counts[2][label])) for label in attacked
    }
    return Purged(Splits(train, val, test), _others(public, same_name, theirs), needs)


def seated(left: Purged, seed: int) -> Seating:
    """The data in `left`, with strangers in the outputs of the attacked people, drawn from a hash of data and `seed`.

    A stranger has as many images as the person had, where the public data hold a free class of that size, else as many
    as the largest free class has. Nobody gets an output whom the private data hold under the same name.
    """
    public = labelled_public(left.public) if is_labelled(left.public) else left.public.select(torch.arange(0))
    drawn = _drawn(left, public, seed)
    strangers = {label: public.classes[stranger] for label, stranger in drawn.items()}
    pictures = {label: _pictures(public, stranger, label, left.needs[label], seed) for label, stranger in drawn.items()}
    names = {label: f"{strangers[label]} (public)" if label in strangers else NOBODY for label in left.needs}
    classes = tuple(names.get(label, name) for label, name in enumerate(left.splits.train.classes))
    mark = digest("counterfactual", left.public.fingerprint, seed, sorted(names.items()), sorted(left.needs.items()))
    train = _joined(left.splits.train, [parts[0] for parts in pictures.values()], classes, mark)
    val = _joined(left.splits.val, [parts[1] for parts in pictures.values()], classes, mark)
    everybody = not len(left.splits.test)  # is attacked, so that only strangers are left to test on
    test = _joined(left.splits.test, [parts[2] for parts in pictures.values() if everybody], classes, mark)
    short = tuple(label for label, parts in pictures.items() if sum(map(len, parts)) < sum(left.needs[label]))
    return Seating(Splits(train, val, test), strangers, short)


def _others(data: Dataset, gone: Sequence[int], theirs: Dataset) -> Dataset:
    """The images of `data` that are neither in the classes `gone` nor copies of one of `theirs`."""
    kept = ~torch.isin(data.labels, torch.tensor(gone, dtype=torch.int64))
    rows = kept.nonzero().squeeze(1)
    kept[rows[copies(data.select(rows), theirs)]] = False
    if bool(kept.all()):
        return data
    rows = kept.nonzero().squeeze(1)
    return replace(data.select(rows), fingerprint=digest("some of", data.fingerprint, rows.tolist()))


def _drawn(left: Purged, public: Dataset, seed: int) -> dict[int, int]:
    """The public class for each attacked one; people with many images choose first, because few strangers have them."""
    sizes = public.labels.bincount(minlength=len(public.classes)).tolist()
    key = f"{left.splits.train.fingerprint}/{public.fingerprint}/{seed}"
    known = set(left.splits.train.classes)
    free = [label for label, name in enumerate(public.classes) if sizes[label] and name not in known]
    free.sort(key=lambda label: hashlib.sha256(f"{key}/{public.classes[label]}".encode()).digest())
    drawn: dict[int, int] = {}
    for slot in sorted(left.needs, key=lambda label: (-sum(left.needs[label]), label)):
        if free:
            large = [label for label in free if sizes[label] >= sum(left.needs[slot])]
            drawn[slot] = large[0] if large else max(free, key=sizes.__getitem__)
            free.remove(drawn[slot])
    return dict(sorted(drawn.items()))


def _pictures(public: Dataset, stranger: int, label: int, need: Need, seed: int) -> tuple[Dataset, ...]:
    """The stranger's images under the label of the person, for train, val and test."""
    rows = (public.labels == stranger).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    parts = rows.split(_sizes(need, len(rows)))
    return tuple(replace(public.select(part), labels=torch.full_like(part, label)) for part in parts[:3])


def _sizes(need: Need, there: int) -> list[int]:
    """How many of `there` images go to train, val and test, in the proportions of `need`; the last part is unused."""
    total = sum(need)
    used = min(there, total)
    val, test = (wanted * used // total for wanted in need[1:])
    return [used - val - test, val, test, there - used]


def _joined(part: Dataset, more: Sequence[Dataset], classes: tuple[str, ...], mark: str) -> Dataset:
    parts = (part, *more)
    known = all(len(one.files) == len(one) for one in parts)
    return replace(
        part,
        pixels=torch.cat([one.pixels for one in parts]),
        labels=torch.cat([one.labels for one in parts]),
        classes=classes,
        files=tuple(file for one in parts for file in one.files) if known else (),
        fingerprint=digest(part.fingerprint, mark),
    )
