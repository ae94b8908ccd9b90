"""The public start of a defended model and of its undefended twin."""

from collections import Counter
from dataclasses import asdict, dataclass, replace

import torch

from mi_audit.audit.plan import ModelPlan
from mi_audit.audit.scene import Scene, load_planned_model
from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.nn import skips
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.edits import SEAL
from mi_audit.store.files import digest
from mi_audit.store.splits import FEWEST, split
from mi_audit.store.targets import LoadedModel, load_model, new_model, save_model
from mi_audit.train.accuracy import accuracy
from mi_audit.train.classifier import fit
from mi_audit.train.defended import Parts, freeze
from mi_audit.train.recipe import Recipe
from mi_audit.train.seeding import seeded

VERSION = 1
FEWEST_PICTURES = 3  # of a public class that takes part in pre-training
SEED = 777


@dataclass(frozen=True, slots=True, eq=False)
class PublicStart:
    """Weights trained on public images only.

    Attributes:
        weights: By name; those that fit the private model's shapes are copied into it.
        facts: Where they came from, for the manifest.
    """

    weights: dict[str, torch.Tensor]
    facts: dict[str, object]

    def copy_into(self, classifier: Classifier) -> dict[str, object]:
        """Copy every tensor whose name and shape fit and say which did not; the head never fits another class list."""
        mine = classifier.net.state_dict()
        head = {name for name in mine if name.startswith(f"{classifier.head_name}.")} | {SEAL}
        fitting = {k: v for k, v in self.weights.items() if k in mine and k not in head and v.shape == mine[k].shape}
        missed = sorted(set(mine) - set(fitting))
        if len(fitting) < len(mine) / 2:
            raise ConfigError(
                f"expected --pretrained weights of the same architecture, got {len(fitting)} of {len(mine)} tensors "
                "that fit; name a model of the same architecture"
            )
        with torch.no_grad():
            for name, value in fitting.items():
                mine[name].copy_(value)
        skips.reopen(classifier.net)
        return {**self.facts, "tensors_copied": len(fitting), "tensors_fresh": missed}


def public_start(scene: Scene, epochs: int | None) -> PublicStart:
    """The start the plan names: a model reference, or one trained here on the labelled public data."""
    pretrained = scene.plan.defend.pretrained
    if pretrained != "auto":
        model = load_planned_model(ModelPlan(ref=pretrained), scene.device)
        if model.arch != scene.model.arch:
            scene.warn(
                f"public weights are of {model.arch}, the model is {scene.model.arch}: only tensors that fit are used"
            )
        return PublicStart(model.classifier.net.state_dict(), {"source": pretrained, "sha256": model.sha256})
    return _trained(scene, epochs)


def labelled_public(public: Dataset) -> Dataset:
    """The public classes with at least three pictures, relabelled.

    Raises:
        ConfigError: Fewer than two such classes: the data carry no labels to learn from.
    """
    counts = Counter(public.labels.tolist())
    kept = sorted(label for label, count in counts.items() if count >= FEWEST_PICTURES)
    if len(kept) < 2:
        raise ConfigError(
            f"expected labelled public data (two folders of {FEWEST_PICTURES} pictures or more) to start the defended "
            f"model from, got {len(kept)} such classes; give --pretrained MODEL"
        )
    rows = torch.isin(public.labels, torch.tensor(kept)).nonzero().squeeze(1)
    chosen = public.select(rows)
    labels = torch.bucketize(chosen.labels, torch.tensor(kept))
    return replace(chosen, labels=labels, classes=tuple(public.classes[label] for label in kept))


def is_labelled(public: Dataset) -> bool:
    """Whether the public data tell people apart, so that a start can be trained on them."""
    counts = Counter(public.labels.tolist()).values()
    return sum(count >= FEWEST_PICTURES for count in counts) >= 2 and max(counts) >= FEWEST


def start_recipe(scene: Scene, data: Dataset, epochs: int | None = None) -> Recipe:
    """How the start is trained on `data`."""
    return Recipe(
        epochs=epochs or (8 if scene.size <= 40 else 30),
        lr=0.05,
        augment="faces" if data.channels == 3 else "shift",
        precision=scene.plan.precision,
    )


def _trained(scene: Scene, epochs: int | None) -> PublicStart:
    data = labelled_public(scene.public)
    parts = split(data, seed=SEED)
    recipe = start_recipe(scene, data, epochs)
    base = scene.model
    key = digest(
        "public start",
        VERSION,
        base.arch,
        data.fingerprint,
        scene.size,
        {**asdict(recipe), "precision": ""},
        list(data.classes),
    )
    file = scene.cache.folder("public-starts", key) / "model.safetensors"
    if not file.is_file():
        scene.progress.stage(
            f"Training the public start ({len(data.classes)} classes, {len(data)} images, {recipe.epochs} epochs)"
        )
        net = base.classifier
        model = new_model(
            base.arch, num_classes=len(data.classes), channels=net.channels, size=net.size, mean=net.mean_values,
            std=net.std_values, seed=SEED,
        )  # fmt: skip
        with scene.clock.stage("public start"):
            fit(
                model.classifier, parts.train, parts.val, recipe, seed=SEED, device=scene.device,
                on_step=scene.progress.step, checkpoint=file.with_suffix(".checkpoint"),
            )  # fmt: skip
        save_model(file, replace(model, class_names=data.classes), {"trained": asdict(recipe)})
    own_code = base.arch if base.arch.startswith("py:") else None  # the user named it, no file did
    model = load_model(str(file), arch=own_code, device=scene.device)
    measured = accuracy(model.classifier, parts.test if len(parts.test) else parts.val, scene.device)
    scene.progress.note(
        f"public start: accuracy {measured.value:.3f} on {measured.count} held-out images of public classes"
    )
    facts: dict[str, object] = {
        "source": f"trained on {len(data.classes)} public classes",
        "sha256": model.sha256,
        "recipe": asdict(recipe),
        "accuracy": measured.value,
    }
    return PublicStart(model.classifier.net.state_dict(), facts)


def fresh_private_model(
    scene: Scene, start: PublicStart | None, seed: int, parts: Parts
) -> tuple[LoadedModel, dict[str, object]]:
    """The architecture of the plan as the defenses change it, with a fresh head, the rest from `start` if there is one.

    The changes come before the public weights, so that what they add stays fresh and what they keep is loaded.
    """
    net, classes = scene.model.classifier, scene.splits.train.classes
    model = new_model(
        scene.model.arch, num_classes=len(classes), channels=net.channels, size=net.size, mean=net.mean_values,
        std=net.std_values, seed=seed,
    )  # fmt: skip
    example = model.classifier.prepare(scene.splits.train.images(slice(0, 2), "cpu"))
    freeze(model.classifier, parts, scene.splits.train.images(slice(0, 2), "cpu"))  # edits may spare what is frozen
    with seeded("cpu", seed, "edits"):
        for part in parts.values():
            model = model.edited(part.edits(model.classifier.net, example))
    facts: dict[str, object] = start.copy_into(model.classifier) if start else {"source": "fresh weights"}
    return replace(model, class_names=classes), facts
