"""Training on private images from a public start: defended models, their undefended twins, counterfactual targets."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mi_audit.audit.composition import Composition
from mi_audit.audit.pretrain import PublicStart, fresh_private_model
from mi_audit.audit.scene import Scene, as_settings
from mi_audit.audit.versions import TRAINING, tool_versions
from mi_audit.core.defense import Slot
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.freezing import train_mode
from mi_audit.nn.modes import keeping_modes
from mi_audit.nn.skips_ratio import ratios
from mi_audit.store.files import digest
from mi_audit.store.targets import LoadedModel, load_model, save_model
from mi_audit.store.weights import read_facts
from mi_audit.train.accuracy import measured_accuracy
from mi_audit.train.augment import Augmentation
from mi_audit.train.classifier import Fit
from mi_audit.train.defended import DefendedFit, Parts, fit_defended, freeze
from mi_audit.train.recipe import Recipe

MEASURED = 64  # training images, without augmentation
VERSION = 2  # raised when the same settings would train other weights


@dataclass(frozen=True, slots=True, eq=False)
class Retraining:
    """How one model is trained on private images.

    Attributes:
        composition: The defenses with their settings; none trains an undefended model.
        start: The public weights; None starts from fresh ones.
        recipe: Epochs, learning rate and the like.
        search: How the cut was found, for the manifest; empty when it was given.
    """

    composition: Composition
    start: PublicStart | None
    recipe: Recipe
    search: Mapping[str, object] = field(default_factory=dict)


def defend_recipe(scene: Scene) -> Recipe:
    """How models are fine-tuned from the public start."""
    plan, small = scene.plan.defend, scene.size <= 40
    usual: Augmentation = "faces" if scene.splits.train.channels == 3 else "shift"
    return Recipe(
        epochs=plan.epochs or (12 if small else 30),
        lr=plan.lr or 0.05,
        batch_size=plan.batch_size or 64,
        augment=usual if plan.augment == "auto" else plan.augment,
        precision=scene.plan.precision,
    )


def retrained(scene: Scene, how: Retraining, seed: int, file: Path, kind: str) -> LoadedModel:
    """The model kept in `file`; unless an earlier run finished the same there, it is trained and saved.

    Args:
        scene: Data and architecture.
        how: Defense, start and recipe.
        seed: Of the fresh head and of the training.
        file: Where the weights are kept; an unfinished training of the same is kept beside it and goes on from there.
        kind: What to call it in messages, such as `undefended`.
    """
    key = _key(scene, how, seed)
    if scene.plan.fresh or _kept(file) != key:
        scene.progress.stage(f"Training the {kind} model, seed {seed} ({how.recipe.epochs} epochs)")
        with scene.clock.stage(f"train {kind}"):
            made = fit_private(scene, how, seed, how.recipe, _unfinished(file, key))
        save_model(file, made.model, {"defense": _about(scene, how, made, seed), "key": key})
        for left in file.parent.glob(_unfinished(file, "*").name):  # by settings that were given up
            left.unlink()
    own_code = scene.model.arch if scene.model.arch.startswith("py:") else None  # the user named it, no file did
    return load_model(str(file), arch=own_code, device=scene.device)


def check_fit(scene: Scene, parts: Parts) -> Classifier:
    """Find out whether the defenses fit the architecture, on a fresh network, which is returned as they changed it.

    Raises:
        ConfigError: A part does not find what it changes, freezes or watches, or changes what another one freezes.
    """
    model, _ = fresh_private_model(scene, None, scene.plan.seed, parts)
    example = scene.splits.train.images(slice(0, 2), "cpu")
    freeze(model.classifier, parts, example)
    for part in parts.values():
        if Slot.TERM in part.slots:
            part.taps(model.classifier, example)
    return model.classifier


class Trained(NamedTuple):
    """A model that learned, what the defenses decided about it, and where its weights came from."""

    model: LoadedModel
    fit: DefendedFit
    frozen: dict[str, dict[str, object]]
    init: dict[str, object]
    changed: dict[str, object]


def fit_private(scene: Scene, how: Retraining, seed: int, recipe: Recipe, checkpoint: Path | None) -> Trained:
    """Train a fresh model with `recipe`: architecture edited, public weights loaded, layers frozen, then all phases.

    Raises:
        ConfigError: A defense does not fit the architecture, or changes a part of it that another one freezes.
    """
    parts = how.composition.parts
    model, init = fresh_private_model(scene, how.start, seed, parts)
    net = model.classifier.to(scene.device)
    frozen = freeze(net, parts, scene.splits.train.images(slice(0, 2), scene.device))
    seen = scene.splits.train.images(slice(0, MEASURED), scene.device)
    before = ratios(net.net, net.prepare(seen))
    for name, facts in frozen.items():
        scene.progress.note(f"{name}: {facts['summary']}")
    fitted = fit_defended(
        net, scene.splits.train, scene.splits.val, recipe, parts, seed=seed, device=scene.device,
        on_step=scene.progress.step, checkpoint=checkpoint,
    )  # fmt: skip
    for name, fit in fitted.phases:
        if "frozen_prefix" in fit.facts:
            scene.progress.note(f"{name}: {fit.facts['frozen_prefix']}")
    for name, part in parts.items():
        lacking = part.shortfall(fitted.notes(name))
        if lacking:
            scene.warn(f"{name}, seed {seed}: {lacking}")
    after = ratios(net.net, net.prepare(seen))
    for name, share in after.items():
        scene.progress.note(f"{name}: shortcut over branch {before.get(name, 0.0):.3g} before, {share:.3g} after")
    skips = {"skip_ratios": {"before": before, "after": after}} if after else {}
    return Trained(model, fitted, frozen, init, {"batch_norm": batch_norm_policy(net), **skips})


def _about(scene: Scene, how: Retraining, made: Trained, seed: int) -> dict[str, object]:
    """What the manifest says about a training."""
    composition, versions = how.composition, tool_versions()
    return {
        "method": composition.method,
        "kind": composition.kind,
        "settings": {name: as_settings(part) for name, part in composition.parts.items()},
        "resolved": made.frozen,
        **({"freeze_search": dict(how.search)} if how.search else {}),
        "doubts": list(composition.doubts),
        "recipe": asdict(_in_force(how)),
        "phases": {name: {"place": place, **_course(fit)} for place, (name, fit) in enumerate(made.fit.phases, 1)},
        "init": made.init,
        **made.changed,
        "data": {"train": scene.splits.train.fingerprint, "val": scene.splits.val.fingerprint},
        "versions": {name: versions[name] for name in TRAINING},
        "seed": seed,
        "val_accuracy": made.fit.val_accuracy,
        "test_accuracy": measured_accuracy(made.model, scene.splits.test, scene.device).value,
        "adaptive_attack": composition.adaptive,
        "cautions": list(composition.cautions),
    }


def _in_force(how: Retraining) -> Recipe:
    """The recipe as it was followed: who takes the trainer's place computes in single precision, whatever was asked."""
    steps = any(Slot.STEP in part.slots for part in how.composition.parts.values())
    return replace(how.recipe, precision="32") if steps else how.recipe


def batch_norm_policy(net: nn.Module) -> dict[str, object]:
    """How many batch norms followed the private images, and how many kept the statistics they came with.

    Those in frozen layers stay in evaluation: the numbers are of the state in which `net` was trained.
    """
    with keeping_modes(net):
        train_mode(net)
        learned = [module.training for module in net.modules() if isinstance(module, _BatchNorm)]
    counts = {"trained": sum(learned), "frozen": len(learned) - sum(learned)}
    return {"policy": "frozen layers keep their public statistics", **counts}


def _course(fit: Fit) -> dict[str, object]:
    """The epoch that a phase kept, what its parts of the loss came to there, and what else is to be told of it."""
    notes = fit.history[fit.epoch - 1].notes if fit.history else {}
    return {"kept_epoch": fit.epoch, **({"loss": dict(notes)} if notes else {}), **fit.facts}


def _key(scene: Scene, how: Retraining, seed: int) -> str:
    """Hash of everything that the weights depend on; as in all keys, not of the precision, which is part of no id."""
    net, train, val = scene.model.classifier, scene.splits.train, scene.splits.val
    return digest(
        "retrained", VERSION, scene.model.arch, net.size, net.channels, net.mean_values, net.std_values, scene.size,
        train.fingerprint, val.fingerprint, train.classes,
        {name: as_settings(part) for name, part in how.composition.parts.items()},
        {**asdict(how.recipe), "precision": ""}, how.start.facts["sha256"] if how.start else "", seed,
    )  # fmt: skip


def _kept(file: Path) -> str:
    """The key of the weights in `file`, from its own metadata: a sidecar may be newer. Empty when there is none."""
    if not file.is_file():
        return ""
    facts = read_facts(file).get("facts")
    return str(facts.get("key", "")) if isinstance(facts, dict) else ""


def _unfinished(file: Path, key: str) -> Path:
    """Where an unfinished training for `file` is kept; with another key it is another training."""
    return file.with_name(f"{file.stem}-{key[:16]}.checkpoint")
