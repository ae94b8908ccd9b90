"""Retrain a model with a published defense, beside an undefended twin, and attack both."""

import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import torch

from mi_audit.audit.attack import (
    audit_models,
    build_attacks,
    check_controls,
    discard_pictures,
    load_court,
    seeds_of,
    verdict_of,
)
from mi_audit.audit.auto_freeze import automatic, check_search, find_cut, with_cut
from mi_audit.audit.compare import compare
from mi_audit.audit.composition import UNDEFENDED, Composition, compose
from mi_audit.audit.exposed import drawing_order
from mi_audit.audit.judge import model_facts
from mi_audit.audit.measure import check_metrics, per_class
from mi_audit.audit.plan import Plan
from mi_audit.audit.pretrain import PublicStart, public_start
from mi_audit.audit.progress import ProgressSink, Silent
from mi_audit.audit.retrain import Retraining, check_fit, defend_recipe, retrained
from mi_audit.audit.scene import Scene, open_scene
from mi_audit.audit.stopping import stops_early
from mi_audit.core.errors import ConfigError
from mi_audit.core.report import AuditReport, Comparison, ModelFacts
from mi_audit.store.files import make_folder, read_file, storage_error, write_atomic
from mi_audit.store.results import write_result
from mi_audit.store.targets import LoadedModel
from mi_audit.train.accuracy import released_labels, share_right
from mi_audit.train.defended import schedule
from mi_audit.train.recipe import Recipe


def run_defense(plan: Plan, progress: ProgressSink | None = None) -> Comparison:
    """Train the undefended twin and the defended model alike, attack both, compare, and write `result.json`.

    Both start from the same public weights and see the same data in the same order; one pair per seed. The defended
    weights go to `models/defended-s<seed>.safetensors` with a manifest, so `mi-audit attack` loads them as they are.

    Raises:
        AuditError: Any of its kinds; see `mi_audit.core.errors`.
    """
    if plan.defend.save is not None:
        check_destination(plan.defend.save)
    builds = build_attacks(plan)
    check_metrics(plan)
    composition = composition_of(plan)
    with open_scene(plan, "defend", progress or Silent()) as scene:
        check_controls(scene, trains=True)
        for doubt in composition.doubts:
            scene.warn(doubt)
        recipe = defend_recipe(scene)
        _check_training(scene, composition, recipe)
        start = public_start(scene, None)
        court, delta, search = load_court(scene), automatic(composition), dict[str, object]()
        if delta is not None:
            found = find_cut(scene, start, recipe, court, builds, delta)
            composition, search = with_cut(scene, found.spec), found.as_mapping()
        twins, defended = {}, {}
        for seed in seeds_of(plan):
            twins[seed] = trained(scene, UNDEFENDED, start, recipe, seed)
            defended[seed] = trained(scene, composition, start, recipe, seed, search)
        after = audit_models(scene, defended, court, builds, "defended")
        before = audit_models(scene, twins, court, builds, "undefended", _people(plan, after))
        result = compare(before, after, plan.command)
        first = seeds_of(plan)[0]
        result = replace(
            result,
            defense=dict(defended[first][1].defense),
            model=str(_file("defended", first)),
            warnings=tuple(dict.fromkeys((*result.warnings, *scene.warnings))),
        )
        result = replace(result, verdict=verdict_of(result, plan))
        write_result(scene.folder.path / "result.json", result)
        if plan.defend.save is not None:
            copy_model(scene.folder.path / _file("defended", first), plan.defend.save)
        discard_pictures(scene)
        return result


def _check_training(scene: Scene, composition: Composition, recipe: Recipe) -> None:
    """Refuse what cannot be trained before the public start and the twin are trained in vain."""
    schedule(recipe, composition.parts)
    if automatic(composition) is None:
        check_fit(scene, composition.parts)
    else:
        check_search(scene)


def check_destination(file: Path) -> None:
    """Find out whether `file` and its sidecar can be written, before anything is trained for them.

    Raises:
        ConfigError: The weights would get the name of their sidecar.
        StorageError: The folder cannot be created or written, or there is a folder in the place of the file.
    """
    if file.suffix == ".json":
        raise ConfigError(
            f"expected --save FILE.safetensors, got {file}, the name of its manifest; choose another name"
        )
    folder = make_folder(file.parent)
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise storage_error("write", file, error) from error


def composition_of(plan: Plan, freeze: str | None = None) -> Composition:
    """The defenses of the plan; `freeze`, else `--freeze`, sets their cut."""
    return compose(plan.defend.method, plan.defend.settings, freeze or plan.defend.freeze)


def trained(
    scene: Scene,
    composition: Composition,
    start: PublicStart,
    recipe: Recipe,
    seed: int,
    search: Mapping[str, object] | None = None,
) -> tuple[LoadedModel, ModelFacts]:
    """One model of a pair, with its accuracy: loaded when an interrupted run finished it, else trained and saved."""
    kind = "defended" if composition.parts else "undefended"
    file = scene.folder.path / _file(kind, seed)
    model = retrained(scene, Retraining(composition, start, recipe, search or {}), seed, file, kind)
    model = replace(model, ref=str(_file(kind, seed)))
    test = scene.splits.test
    labels = released_labels(model, test, scene.device)
    measured, right = share_right(labels, test), (labels == test.labels).float()
    scene.progress.note(f"{kind} model, seed {seed}: accuracy {measured.value:.3f} on {measured.count} test images")
    return model, model_facts(model, measured, seed, per_class(right, test.labels, torch.zeros_like(test.labels)))


def _file(kind: str, seed: int) -> Path:
    return Path("models") / f"{kind}-s{seed}.safetensors"


def copy_model(file: Path, destination: Path) -> None:
    """Place the weights where the user wants them; the sidecar first, so that no weights are ever without it."""
    write_atomic(destination.with_suffix(".json"), read_file(file.with_suffix(".json")))
    write_atomic(destination, read_file(file))


def _people(plan: Plan, after: AuditReport) -> tuple[int, ...]:
    """Whom the twin is attacked on: as the defended model was, in the same order, so that they share chunks."""
    return drawing_order(after.attacked, after.targets[0].sha256) if stops_early(plan) else after.attacked
