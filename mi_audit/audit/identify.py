"""Is this the model it is said to be: architecture, input size, normalisation and class order, decided by accuracy."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import TargetError
from mi_audit.core.report import Quantity
from mi_audit.core.types import Labels, Logits
from mi_audit.store.targets import LoadedModel
from mi_audit.train.accuracy import accuracy, measured_accuracy

SAMPLE = 128  # images that variants are compared on; the final accuracy uses all
BATCH = 64
CLEARLY = 3.0  # standard errors between two accuracies
WILSON = 3.2905  # normal quantile of a two-sided 99.9 % interval
SMALL_MARGIN = 0.1  # above chance, where twice chance is too much to ask: two or three classes
SIZES = (32, 64, 112, 128, 224)
NORMALISATIONS = {
    "0.5/0.5": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One reading of the model, with its accuracy on the sample under the class order that suits it best.

    Attributes:
        what: What was changed, in words.
        order, permutation: Name of the class order, and the columns it takes; None leaves them as they are.
        shares: Accuracy under each order that was tried.
    """

    what: str
    model: LoadedModel
    order: str
    permutation: tuple[int, ...] | None
    shares: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        return self.shares[self.order]


def identify(model: LoadedModel, data: Dataset, device: str) -> tuple[LoadedModel, Quantity]:
    """Settle what the user did not state, and measure the accuracy on all of `data`, of what the model releases.

    Input size, then normalisation are varied, for every architecture that holds the same tensors; the class order is
    tried with each. A variant replaces the declared one only if it is more than three standard errors better.

    Args:
        model: As it was loaded.
        data: Private images with their classes; only the accuracy is taken from them.
        device: Where to run.

    Raises:
        TargetError: The model has another number of classes, several architectures do equally well, or no variant is
            well above chance.
    """
    _check_classes(model, data)
    sample = data.select(torch.linspace(0, len(data) - 1, min(SAMPLE, len(data))).round().long())
    tried: list[Variant] = []
    candidates = [model, *(model.as_arch(arch) for arch in model.alternatives)]
    ranked = sorted(
        (_search(candidate, sample, device, tried) for candidate in candidates),
        key=lambda variant: variant.accuracy,
        reverse=True,
    )
    _check_decided(ranked, len(sample))
    settled = _settled(ranked[0], decided=len(ranked) > 1)
    measured = accuracy(settled.classifier, data, device)  # of the network: an API may answer worse, and be right
    _check_above_chance(measured, data, model, tried)
    return settled, measured_accuracy(settled, data, device) if settled.edits else measured


def natural_order(names: tuple[str, ...]) -> tuple[int, ...]:
    """Rank of each name when digits are compared as numbers and case is ignored, as timm numbers its folders."""
    return _ranks(names, lambda name: (_natural_key(name), name))


def chance_floor(labels: Int[Tensor, " n"], classes: int) -> float:
    """Accuracy to exceed: twice chance (0.1 above it for few classes), and the share of the largest class."""
    largest = float(torch.bincount(labels, minlength=classes).max()) / max(1, len(labels))
    return max(largest, 2 / classes if classes > 3 else 1 / classes + SMALL_MARGIN)


def wilson_low(value: float, count: int) -> float:
    """Lower end of the two-sided 99.9 % interval of a share (Wilson, JASA 1927)."""
    squared = WILSON**2
    middle = value + squared / (2 * count)
    spread = WILSON * math.sqrt(value * (1 - value) / count + squared / (4 * count**2))
    return (middle - spread) / (1 + squared / count)


def _search(model: LoadedModel, sample: Dataset, device: str, tried: list[Variant]) -> Variant:
    """The best reading of one architecture: the declared one unless another size or normalisation is clearly better."""
    best = _measured(model.arch, model, sample, device)
    tried.append(best)
    for fact, variants in (("size", _sizes), ("mean", _normalisations)):
        if not _clearly(1.0, best.accuracy, len(sample)):
            return best  # not even a perfect variant would stand out
        found = [_measured(what, variant, sample, device) for what, variant in variants(best.model, sample)]
        tried += found
        better = max([best, *found], key=lambda variant: variant.accuracy)
        if _clearly(better.accuracy, best.accuracy, len(sample)):
            facts = (fact, "std") if fact == "mean" else (fact,)
            best = replace(better, model=_noted(better.model, facts, better.what))
    return best


def _measured(what: str, model: LoadedModel, sample: Dataset, device: str) -> Variant:
    logits, orders = _logits(model, sample, device), _orders(model, sample.classes)
    shares = {name: _share(logits, order, sample.labels) for name, order in orders.items()}
    declared, name = next(iter(shares)), max(shares, key=shares.__getitem__)
    name = name if _clearly(shares[name], shares[declared], len(sample)) else declared
    return Variant(what, model, name, orders[name], shares)


def _settled(variant: Variant, *, decided: bool) -> LoadedModel:
    """The model with its outputs in the order of the data's classes, and where that order came from."""
    model, shares = variant.model, variant.shares
    measured = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    if len(shares) > 1:
        origin = f"{variant.order}: accuracy {measured}"
    else:
        origin = f"{variant.order}: flag" if model.class_order == variant.order != "as given" else variant.order
    model = replace(model, origins={**model.origins, "class_order": origin})
    if decided:
        model = replace(_noted(model, ("arch",), model.arch), alternatives=())
    if variant.permutation is not None:
        model = model.with_input(order=variant.permutation)
    return replace(model, class_order=variant.order)


def _orders(model: LoadedModel, classes: tuple[str, ...]) -> dict[str, tuple[int, ...] | None]:
    """The class orders to try, by name, the one to prefer first; None leaves the outputs as they are."""
    if model.classifier.order is not None:
        return {"as given": None}
    names = model.class_names
    lexical, natural = _ranks(classes, lambda name: name), natural_order(classes)
    if model.class_order in ("lexical", "natural"):
        return {model.class_order: lexical if model.class_order == "lexical" else natural}
    if len(set(names)) == len(names) and set(names) == set(classes):
        return {"class names": tuple(names.index(name) for name in classes)}
    as_loaded = tuple(range(len(classes)))
    named = {natural: "natural", lexical: "lexical"}
    orders = {named.pop(as_loaded, "as given"): None}
    return orders | {name: order for order, name in named.items()}


def _ranks(names: tuple[str, ...], key: Callable[[str], Any]) -> tuple[int, ...]:
    ordered = sorted(names, key=key)
    return tuple(ordered.index(name) for name in names)


def _sizes(model: LoadedModel, sample: Dataset) -> Iterator[tuple[str, LoadedModel]]:
    if "default" not in model.origins.get("size", ""):
        return
    for size in sorted({sample.size, *SIZES} - {model.classifier.size}):
        try:
            yield f"{size} px", model.with_input(size=size)
        except TargetError:  # a network for one size only
            continue


def _normalisations(model: LoadedModel, sample: Dataset) -> Iterator[tuple[str, LoadedModel]]:
    del sample
    if {"mean", "std"} & model.explicit:
        return
    net = model.classifier
    for name, (mean, std) in NORMALISATIONS.items():
        if (mean, std) != (net.mean_values, net.std_values) and len(mean) in (1, net.channels):
            yield f"normalisation {name}", model.with_input(mean=mean, std=std)


@torch.no_grad()
def _logits(model: LoadedModel, sample: Dataset, device: str) -> Logits:
    classifier = model.classifier.to(device).eval()
    rows = (slice(start, start + BATCH) for start in range(0, len(sample), BATCH))
    return torch.cat([classifier(sample.images(part, device)).float().cpu() for part in rows])


def _share(logits: Logits, order: tuple[int, ...] | None, labels: Labels) -> float:
    """Accuracy with the columns of `logits` in `order`."""
    ordered = logits if order is None else logits[:, order]
    return float((ordered.argmax(dim=1) == labels).double().mean())


def _clearly(better: float, worse: float, count: int) -> bool:
    """Two proportions of `count` images differ by more than `CLEARLY` pooled standard errors."""
    pooled = (better + worse) / 2
    return better - worse > CLEARLY * math.sqrt(2 * pooled * (1 - pooled) / count)


def _noted(model: LoadedModel, facts: tuple[str, ...], what: str) -> LoadedModel:
    return replace(model, origins={**model.origins, **{fact: f"accuracy chose {what}" for fact in facts}})


def _check_classes(model: LoadedModel, data: Dataset) -> None:
    if model.classifier.num_classes != len(data.classes):
        raise TargetError(
            f"expected a model of the {len(data.classes)} classes in {data.name}, got {model.classifier.num_classes} "
            f"outputs from {model.ref}; give the data it was trained on, or the model of these classes"
        )
    if not len(data):
        raise TargetError(f"expected images in {data.name} to check {model.ref} on, got none; enlarge the test split")


def _check_decided(ranked: list[Variant], count: int) -> None:
    """With several architectures for the same tensors, the best must stand out."""
    if len(ranked) > 1 and not _clearly(ranked[0].accuracy, ranked[1].accuracy, count):
        measured = ", ".join(f"--arch {variant.model.arch} {variant.accuracy:.3f}" for variant in ranked)
        raise TargetError(
            f"expected accuracy to tell which architecture this is, got {measured}; add one of these flags"
        )


def _check_above_chance(measured: Quantity, data: Dataset, model: LoadedModel, tried: list[Variant]) -> None:
    value, floor = measured.value or 0.0, chance_floor(data.labels, len(data.classes))
    low = wilson_low(value, measured.count)
    if low > floor:
        return
    variants = ", ".join(f"{variant.what} ({variant.order}) {variant.accuracy:.3f}" for variant in tried)
    raise TargetError(
        f"expected {model.ref} to be well above chance on {data.name} (above {floor:.3f}), got accuracy {value:.3f} "
        f"on {measured.count} images (at least {low:.3f}), having tried {variants}; "
        "check --arch, --input-size, --mean/--std, --class-order and --labels"
    )


def _natural_key(name: str) -> list[tuple[str, int]]:
    """Pieces of text, each with the number that follows it."""
    parts = re.split(r"(\d+)", name.lower())
    return [(text, int(number)) for text, number in zip_longest(parts[0::2], parts[1::2], fillvalue="-1")]
