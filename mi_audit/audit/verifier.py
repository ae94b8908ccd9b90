"""The verifier: says whether a picture shows a person, knows neither the target nor the people it was trained on."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mi_audit.audit.embedding import Embed, Photographs, as_embedding, photographs
from mi_audit.audit.judge import evaluator_recipe
from mi_audit.audit.plan import ModelPlan
from mi_audit.audit.pretrain import labelled_public
from mi_audit.audit.scene import Scene, load_planned_model
from mi_audit.core.dataset import Dataset, Splits
from mi_audit.core.errors import ConfigError, DataError
from mi_audit.core.metric import Verification
from mi_audit.core.quantity import Interval, Quantity
from mi_audit.core.types import Labels, Pixels
from mi_audit.core.verdict import VerifierFacts
from mi_audit.nn.intervals import clopper_pearson
from mi_audit.nn.verification import (
    ONE_SIDED_95,
    first_of_class,
    similarity_to_class,
    strangers,
    threshold_for,
)
from mi_audit.store.files import digest
from mi_audit.store.splits import split
from mi_audit.store.targets import LoadedModel, load_model, new_model, save_model
from mi_audit.train.classifier import fit
from mi_audit.train.recipe import Recipe

VERSION = 1  # raised when the same settings would train another verifier
SEED = 54321
TRIALS = 2000  # most impostor trials, and most genuine ones
FALSE_ACCEPTANCE = 0.01
WEAK = 0.80  # lowest bound on the sensitivity that can carry a PASS
UNLABELLED = (
    "the public data carry no labels to train one on; give --verifier MODEL, or public images in one folder per person"
)
TRAINED_HERE = ("built-in:", "py:")  # name an architecture, not weights


@dataclass(frozen=True, slots=True, eq=False)
class Verifier:
    """A calibrated verifier with the photographs it compares with.

    Attributes:
        facts: Its card.
        verification: What metrics see of it; None when there is no verifier.
        missing: Why there is none.
    """

    facts: VerifierFacts | None
    verification: Verification | None
    missing: str = ""


def load_verifier(scene: Scene, others: tuple[LoadedModel, ...], attacked: tuple[int, ...]) -> Verifier:
    """The verifier that the plan names, or one trained here on labelled public data and cached by content.

    Args:
        scene: Plan and data.
        others: Networks it must not be: the target and the evaluator.
        attacked: Labels of the attacked classes.

    Raises:
        ConfigError: The verifier is the target or the evaluator.
    """
    named = _model(scene, others)
    if named is None:
        scene.warn(f"no verifier, so exposure is not measured: {UNLABELLED}")
        return Verifier(None, None, UNLABELLED)
    model, trained_on = named
    if model.sha256 in [other.sha256 for other in others]:
        raise ConfigError(
            "expected a verifier that is neither the target nor the evaluator, got the same weights; "
            "give another --verifier"
        )
    if model.arch == scene.model.arch:
        scene.warn(f"verifier and target share the architecture {model.arch}: it may be fooled by the same patterns")
    if known := sorted(set(model.class_names) & {scene.splits.train.classes[label] for label in attacked}):
        scene.warn(f"the verifier was trained on classes of the same name as attacked ones: {', '.join(known[:5])}")
    verifier = calibrated(scene, model, trained_on, attacked)
    if verifier.facts is None:
        scene.warn(f"no verifier, so exposure is not measured: {verifier.missing}")
    else:
        scene.progress.note(f"verifier {model.arch}: {verifier.facts.weakness}")
    return verifier


def verifier_arch(taken: tuple[str, ...], size: int) -> str:
    """An architecture of another family than those in `taken`, the target's first; at least than the target's."""
    small = ("built-in:cnn-wide", "built-in:cnn")
    large = ("built-in:vgg16-bn-small", "built-in:resnet18-small", "built-in:densenet121-small")
    known = small if size <= 40 else large
    for avoided in (taken, taken[:1], ()):
        free = [arch for arch in known if _family(arch) not in map(_family, avoided)]
        if free:
            return free[0]
    return known[0]


def calibrated(scene: Scene, model: LoadedModel, trained_on: str, attacked: tuple[int, ...]) -> Verifier:
    """The verifier with a threshold set on private photographs: training pictures against held-out ones.

    A class is known by its test images. Impostors are training images of any class, each claimed to be one other
    attacked class; genuine trials are training images claimed to be who they are.
    """
    train, test = scene.splits.train, scene.splits.test
    embed, generator = as_embedding(scene, model), torch.Generator().manual_seed(SEED)
    (held_out,) = photographs(embed, test, torch.isin(test.labels, torch.tensor(attacked)).nonzero().squeeze(1))
    classes = held_out.labels.unique()
    if len(classes) < len(attacked):
        scene.warn(
            f"{len(attacked) - len(classes)} of {len(attacked)} attacked classes have no held-out photograph: their "
            "exposure is unknown; add test images"
        )
    order = torch.randperm(len(train), generator=generator)
    own = order[torch.isin(train.labels[order], classes)]
    if not len(own):
        return Verifier(None, None, "there are no held-out photographs to calibrate it with; add test images")
    claims, possible = strangers(train.labels[order], classes, generator)
    if not bool(possible.any()):
        return Verifier(None, None, "there are no strangers to calibrate it with; add images of other classes")
    as_many = first_of_class(train.labels[own], held_out.labels.bincount(minlength=len(train.classes)))
    impostors, genuine, known = photographs(embed, train, order[possible][:TRIALS], own[:TRIALS], own[as_many])
    false, true = (
        similarity_to_class(tried.features, claimed, held_out.features, held_out.labels)
        for tried, claimed in ((impostors, claims[possible][:TRIALS]), (genuine, genuine.labels))
    )
    threshold = threshold_for(false, FALSE_ACCEPTANCE)
    verification = Verification(
        name=f"{model.arch}-{model.sha256[:8]}",
        classes=classes,
        held_out=_matching(embed, held_out, threshold),
        train=_matching(embed, known, threshold),
    )
    far = _rate(int((false > threshold).sum()), len(false), "impostor trials")
    sensitivity = _rate(int((true > threshold).sum()), len(true), "genuine trials")
    return Verifier(_card(model, trained_on, threshold, far, sensitivity), verification)


def _card(model: LoadedModel, trained_on: str, threshold: float, far: Quantity, sensitivity: Quantity) -> VerifierFacts:
    return VerifierFacts(
        ref=model.ref,
        arch=model.arch,
        sha256=model.sha256,
        threshold=threshold,
        far=far,
        sensitivity=sensitivity,
        trained_on=trained_on,
        weakness=weakness(far, sensitivity),
    )


def weakness(far: Quantity, sensitivity: Quantity) -> str:
    """How far the verifier can be trusted, in one sentence."""
    assert far.interval is not None and sensitivity.interval is not None
    sentence = (
        f"it recognises {sensitivity.value:.0%} of genuine photographs (at least {sensitivity.interval.low:.0%}) while "
        f"it takes at most {far.interval.high:.1%} of strangers for the person"
    )
    problems = []
    if far.interval.high > FALSE_ACCEPTANCE:
        problems.append(f"too few strangers to show a false acceptance rate of {FALSE_ACCEPTANCE:.0%}")
    if sensitivity.interval.low < WEAK:
        problems.append(f"too weak to certify privacy ({WEAK:.0%} is needed): it misses leaks that people would see")
    return "; ".join([sentence, *problems])


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a verifier is trained on, and how.

    Attributes:
        data: All labelled public images.
        parts: The same, divided.
    """

    arch: str
    recipe: Recipe
    data: Dataset
    parts: Splits


def verifier_lesson(scene: Scene, others: tuple[LoadedModel, ...]) -> Lesson | None:
    """How the verifier of the plan is trained; None when it is given, or public data carry no labels."""
    wanted = scene.plan.verifier
    if wanted != "auto" and not wanted.startswith(TRAINED_HERE):
        return None
    try:
        data = labelled_public(scene.public)
        parts = split(data, SEED)
    except (ConfigError, DataError):
        return None
    arch = verifier_arch(tuple(other.arch for other in others), scene.size) if wanted == "auto" else wanted
    epochs = scene.plan.verifier_epochs or scene.plan.evaluator_epochs
    recipe = evaluator_recipe(scene.size, data.channels, epochs, scene.plan.precision)
    return Lesson(arch, recipe, data, parts)


def verifier_file(scene: Scene, lesson: Lesson) -> Path:
    """Where a verifier that is trained here is kept."""
    data, settings = lesson.data, {**asdict(lesson.recipe), "precision": ""}
    key = digest("verifier", VERSION, lesson.arch, data.fingerprint, scene.size, settings, list(data.classes))
    return scene.cache.folder("verifiers", key) / "verifier.safetensors"


def _model(scene: Scene, others: tuple[LoadedModel, ...]) -> tuple[LoadedModel, str] | None:
    """The network and what it was trained on; None when there is nothing to train one on."""
    wanted = scene.plan.verifier
    if wanted != "auto" and not wanted.startswith(TRAINED_HERE):
        model = load_planned_model(ModelPlan(ref=wanted), scene.device)
        return model, f"{wanted}, as given: it is for its owner to know that no audited person is in its training data"
    lesson = verifier_lesson(scene, others)
    if lesson is None:
        return None
    data, recipe = lesson.data, lesson.recipe
    file = verifier_file(scene, lesson)
    if not file.is_file():
        scene.progress.stage(
            f"Training the verifier ({lesson.arch}, {recipe.epochs} epochs, {len(data)} public images)"
        )
        model = new_model(
            lesson.arch, num_classes=len(data.classes), channels=data.channels, size=scene.size,
            mean=(0.5,) * data.channels, std=(0.5,) * data.channels, seed=SEED,
        )  # fmt: skip
        with scene.clock.stage("verifier"):
            fit(
                model.classifier, lesson.parts.train, lesson.parts.val, recipe, seed=SEED, device=scene.device,
                on_step=scene.progress.step, checkpoint=file.with_suffix(".checkpoint"),
            )  # fmt: skip
        save_model(file, replace(model, class_names=data.classes), {"trained": asdict(recipe)})
    model = replace(load_model(str(file), device=scene.device), ref="trained by mi-audit")
    return model, f"{len(data)} images of {len(data.classes)} classes of {scene.public.name}, which are public"


def _matching(embed: Embed, known: Photographs, threshold: float) -> Callable[[Pixels, Labels], Tensor]:
    def matches(pixels: Tensor, labels: Tensor) -> Tensor:
        return similarity_to_class(embed(pixels), labels, known.features, known.labels) > threshold

    return matches


def _rate(hits: int, n: int, counted: str) -> Quantity:
    low, high = clopper_pearson(hits, n, ONE_SIDED_95)
    method = f"exact binomial over {counted}; each end is a one-sided 95 % bound"
    interval = Interval(low=low, high=high, level=ONE_SIDED_95, method=method)
    return Quantity(value=hits / n, unit="share", count=n, counted=counted, interval=interval)


def _family(arch: str) -> str:
    """`vgg` of `torchvision:vgg16_bn`; the two small built-in networks are families of their own."""
    name = arch.rpartition(":")[2]
    return name if name.startswith("cnn") else re.split(r"[^a-z]", name.lower())[0]
