"""Training on private images from a public start: defended models, their undefended twins, counterfactual targets."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from mi_audit.audit.pretrain import PublicStart, fresh_private_model
from mi_audit.audit.scene import Scene, as_settings
from mi_audit.core.defense import Defense
from mi_audit.nn.classifier import Classifier
from mi_audit.store.files import digest
from mi_audit.store.targets import LoadedModel, load_model, save_model
from mi_audit.store.weights import KEY, read_header
from mi_audit.train.classifier import Recipe, accuracy, cross_entropy, fit

VERSION = 1  # raised when the same settings would train other weights


@dataclass(frozen=True, slots=True, eq=False)
class Retraining:
    """How one model is trained on private images.

    Attributes:
        method: Name of the defense, `none` without one.
        defense: The defense with its settings; None trains an undefended model.
        start: The public weights; None starts from fresh ones.
        recipe: Epochs, learning rate and the like.
    """

    method: str
    defense: Defense | None
    start: PublicStart | None
    recipe: Recipe


def defend_recipe(scene: Scene) -> Recipe:
    """How models are fine-tuned from the public start."""
    plan, small = scene.plan.defend, scene.size <= 40
    return Recipe(
        epochs=plan.epochs or (12 if small else 30),
        lr=plan.lr or 0.05,
        batch_size=plan.batch_size or 64,
        augment="faces" if scene.splits.train.channels == 3 else "shift",
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
        model, init = fresh_private_model(scene, how.start, seed)
        with scene.clock.stage(f"train {kind}"):
            model, cut, val = fit_private(scene, model, how, seed, _unfinished(file, key))
        manifest: dict[str, object] = {
            "method": how.method,
            "kind": "none" if how.defense is None else how.defense.kind,
            "settings": {} if how.defense is None else as_settings(how.defense),
            "resolved": cut,
            "recipe": asdict(how.recipe),
            "init": init,
            "seed": seed,
            "val_accuracy": val,
            "test_accuracy": accuracy(model.classifier, scene.splits.test, scene.device).value,
            "adaptive_attack": "" if how.defense is None else how.defense.adaptive,
        }
        save_model(file, model, {"defense": manifest, "key": key})
        for left in file.parent.glob(_unfinished(file, "*").name):  # by settings that were given up
            left.unlink()
    own_code = scene.model.arch if scene.model.arch.startswith("py:") else None  # the user named it, no file did
    return load_model(str(file), arch=own_code, device=scene.device)


def _key(scene: Scene, how: Retraining, seed: int) -> str:
    """Hash of everything that the weights depend on; as in all keys, not of the precision, which is part of no id."""
    net, train, val = scene.model.classifier, scene.splits.train, scene.splits.val
    return digest(
        "retrained", VERSION, scene.model.arch, net.size, net.channels, net.mean_values, net.std_values, scene.size,
        train.fingerprint, val.fingerprint, train.classes, how.method, as_settings(how.defense) if how.defense else {},
        {**asdict(how.recipe), "precision": ""}, how.start.facts["sha256"] if how.start else "", seed,
    )  # fmt: skip


def _kept(file: Path) -> str:
    """The key of the weights in `file`, from its own metadata: a sidecar may be newer. Empty when there is none."""
    if not file.is_file():
        return ""
    about = json.loads(read_header(file)[1].get(KEY, "{}"))
    return str(about.get("facts", {}).get("key", ""))


def _unfinished(file: Path, key: str) -> Path:
    """Where an unfinished training for `file` is kept; with another key it is another training."""
    return file.with_name(f"{file.stem}-{key[:16]}.checkpoint")


def fit_private(
    scene: Scene, model: LoadedModel, how: Retraining, seed: int, checkpoint: Path | None
) -> tuple[LoadedModel, dict[str, object], float | None]:
    """Train `model`; also what the defense decided about it, and the validation accuracy."""
    net: nn.Module = model.classifier.to(scene.device)
    cut: dict[str, object] = {}
    if how.defense is not None:
        net, cut = how.defense.prepare(net, scene.splits.train.images(slice(0, 2), scene.device))
        scene.progress.note(f"{how.method}: {cut.get('summary', 'prepared')}")
    done = fit(
        net, scene.splits.train, scene.splits.val, how.recipe, seed=seed, device=scene.device,
        loss=cross_entropy if how.defense is None else how.defense.loss, on_step=scene.progress.step,
        checkpoint=checkpoint,
    )  # fmt: skip
    net = net if how.defense is None else how.defense.finish(net)
    assert isinstance(net, Classifier)  # defenses change what is inside, not the wrapper that owns the input
    return replace(model, classifier=net), cut, done.val_accuracy
