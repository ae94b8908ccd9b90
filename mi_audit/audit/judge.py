"""The evaluator: a network of another architecture than the target, that the attacker never sees."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from mi_audit.audit.identify import identify
from mi_audit.audit.plan import ModelPlan
from mi_audit.audit.scene import Scene, load_planned_model
from mi_audit.core.errors import ConfigError
from mi_audit.core.metric import Judge
from mi_audit.core.report import ClassValue, ModelFacts, Quantity
from mi_audit.nn.precision import Precision
from mi_audit.store.files import digest
from mi_audit.store.targets import LoadedModel, load_model, new_model, save_model
from mi_audit.train.accuracy import measured_accuracy
from mi_audit.train.classifier import fit
from mi_audit.train.recipe import Recipe

VERSION = 1  # raised when the same settings would train another evaluator
BATCH = 256


def evaluator_arch(target_arch: str, size: int) -> str:
    """An architecture of another family than the target's that learns images of `size` pixels from scratch."""
    if size <= 40:
        return "built-in:cnn-wide" if target_arch != "built-in:cnn-wide" else "built-in:cnn"
    return "built-in:resnet18-small" if "densenet" in target_arch else "built-in:densenet121-small"


def evaluator_recipe(size: int, channels: int, epochs: int | None, precision: Precision) -> Recipe:
    """How evaluators are trained from scratch: SGD, one cycle, light augmentation; faces flip, grey pictures do not."""
    small = size <= 40
    return Recipe(
        epochs=epochs or (12 if small else 25),
        lr=0.05,
        augment="faces" if channels == 3 else "shift",
        precision=precision,
    )


def load_evaluator(scene: Scene) -> tuple[LoadedModel, ModelFacts]:
    """The judge the user named, or one trained here on the private training split and cached by content.

    Raises:
        ConfigError: The evaluator is the target.
    """
    plan, device = scene.plan, scene.device
    if plan.evaluator == "auto":
        model = _trained(scene)
        measured = measured_accuracy(model, scene.splits.test, device)
    else:
        model = load_planned_model(ModelPlan(ref=plan.evaluator, arch=plan.evaluator_arch), device)
        model, measured = identify(model, scene.splits.test, device)
    if model.sha256 == scene.model.sha256:
        raise ConfigError(
            "expected an evaluator that is not the target, got the same weights; give another --evaluator"
        )
    if model.arch == scene.model.arch:
        scene.warn(f"evaluator and target share the architecture {model.arch}: it overlooks what fools both")
    scene.progress.note(f"evaluator {model.arch}: accuracy {measured.value:.3f} on {measured.count} test images")
    return model, model_facts(model, measured)


def evaluator_file(scene: Scene, arch: str, recipe: Recipe) -> Path:
    """Where an evaluator that is trained here is kept."""
    train = scene.splits.train
    key = digest("evaluator", VERSION, arch, train.fingerprint, scene.size, {**asdict(recipe), "precision": ""})
    return scene.cache.folder("evaluators", key) / "evaluator.safetensors"


def _trained(scene: Scene) -> LoadedModel:
    plan, train, val = scene.plan, scene.splits.train, scene.splits.val
    arch = plan.evaluator_arch or evaluator_arch(scene.model.arch, scene.size)
    recipe = evaluator_recipe(scene.size, train.channels, plan.evaluator_epochs, plan.precision)
    file = evaluator_file(scene, arch, recipe)
    if not file.is_file():
        scene.progress.stage(f"Training the evaluator ({arch}, {recipe.epochs} epochs)")
        model = new_model(
            arch, num_classes=len(train.classes), channels=train.channels, size=scene.size,
            mean=(0.5,) * train.channels, std=(0.5,) * train.channels, seed=12345,
        )  # fmt: skip
        with scene.clock.stage("evaluator"):
            fit(
                model.classifier, train, val, recipe, seed=12345, device=scene.device,
                on_step=scene.progress.step, checkpoint=file.with_suffix(".checkpoint"),
            )  # fmt: skip
        save_model(file, replace(model, class_names=train.classes), {"trained": asdict(recipe)})
    return replace(load_model(str(file), device=scene.device), ref="trained by mi-audit")


def model_facts(
    model: LoadedModel, measured: Quantity, seed: int | None = None, per_class: tuple[ClassValue, ...] = ()
) -> ModelFacts:
    """What a report says about a network."""
    net = model.classifier
    return ModelFacts(
        ref=model.ref,
        arch=model.arch,
        sha256=model.sha256,
        size=net.size,
        channels=net.channels,
        num_classes=net.num_classes,
        mean=net.mean_values,
        std=net.std_values,
        class_order=model.class_order,
        origins=model.origins,
        accuracy=measured,
        defense=model.defense,
        seed=seed,
        accuracy_per_class=per_class,
    )


def as_judge(model: LoadedModel, device: str) -> Judge:
    """The evaluator as metrics see it."""
    net = model.classifier.to(device).eval().requires_grad_(False)
    target = model.target()

    def batched(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        @torch.no_grad()
        def run(images: Tensor) -> Tensor:
            return torch.cat([function(part.to(device)).float().cpu() for part in images.split(BATCH)])

        return run

    name = f"{model.arch}-{model.sha256[:8]}"
    return Judge(name, logits=batched(net), features=batched(target.features), arch=model.arch)
