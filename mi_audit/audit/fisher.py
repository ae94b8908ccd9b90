"""Layer-wise Fisher information of a model for classification and for inversion, and the cut that it suggests."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mi_audit.audit.attack import build_attacks, discard_pictures
from mi_audit.audit.batching import chosen
from mi_audit.audit.clock import Clock
from mi_audit.audit.devices import on_device
from mi_audit.audit.freezing_search import spec_of
from mi_audit.audit.identify import identify
from mi_audit.audit.inversions import NO_PRIOR, Inversions, at_most, from_attacks, from_run
from mi_audit.audit.judge import model_facts
from mi_audit.audit.measure import CONVERGED
from mi_audit.audit.plan import FisherPlan, Plan
from mi_audit.audit.progress import ProgressSink, Silent
from mi_audit.audit.scene import Scene, choose_device, choose_size, load_planned_model, run_folder_path, whole
from mi_audit.audit.settings import plan_to_json
from mi_audit.audit.versions import tool_versions
from mi_audit.core.attack import Attack
from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError, DataError
from mi_audit.core.fisher import FisherReport, InversionFacts, Labelling, Profile, Scale, UnitFacts
from mi_audit.core.report import ModelFacts
from mi_audit.core.run import Run
from mi_audit.nn import fisher
from mi_audit.nn.fisher_profile import Sample, evenly, profile
from mi_audit.store.cache import Cache
from mi_audit.store.datasets import load_dataset, load_splits
from mi_audit.store.files import digest
from mi_audit.store.overlap import overlap
from mi_audit.store.results import FISHER_FILE, write_result
from mi_audit.store.runs import RunFolder
from mi_audit.store.targets import LoadedModel
from mi_audit.train.seeding import stream

EXACT = 10  # classes up to which the true Fisher is no estimate
FEW = 10  # identities below which an interval says little
DEFINITIONS: tuple[tuple[Labelling, Scale], ...] = (
    ("empirical", "mean"),
    ("empirical", "total"),
    ("empirical", "scale-free"),
    ("true", "mean"),
    ("true", "total"),
    ("true", "scale-free"),
)
LOCAL = (
    "Fisher information is local and belongs to this model; a defense changes the model. Nothing proves that freezing "
    "what matters for inversion lowers leakage: take the cut as a place to begin, and decide by a measured attack."
)


def run_fisher(wanted: FisherPlan, progress: ProgressSink | None = None) -> FisherReport:
    """Measure both tasks, write `fisher.json` into the run folder, and return it.

    Classification is measured on private validation images, inversion on reconstructions: those of an earlier run, or
    new ones, of which the moments of the search are kept where the attack can be watched.

    Raises:
        AuditError: Any of its kinds; see `mi_audit.core.errors`.
    """
    wanted = _checked(wanted)
    builds = {} if wanted.run else build_attacks(wanted.plan)
    _check_knowledge(wanted.plan, builds)
    with _open(wanted, progress or Silent()) as scene:
        model, measured = identify(scene.model, scene.splits.test, scene.device)
        scene = replace(scene, model=model, plan=_people(scene, wanted))
        scene.progress.note(f"{model.arch}: accuracy {measured.value:.3f} on {measured.count} private test images")
        if wanted.run:
            attacks = tuple(attack.name for attack in wanted.plan.attacks)
            found = from_run(wanted.run, model.sha256, attacks)
        else:
            found = from_attacks(scene, builds, wanted.moments)
        report = _report(scene, wanted, at_most(found, wanted.samples), model_facts(model, measured))
        write_result(scene.folder.path / FISHER_FILE, report)
        discard_pictures(scene)
        return report


def first_cut(
    scene: Scene, model: LoadedModel, builds: Mapping[str, Attack[Any, Any]], samples: int = 400, moments: int = 10
) -> tuple[Profile, tuple[str, ...]]:
    """The profile that `freezing_search.search` begins with, of a model at hand, and the stage of each of its units.

    Args:
        scene: Data and folder of the run; its plan says whom to attack, 20 people when it says all.
        model: Trained without a defense; frozen and in eval mode from here on.
        builds: Cheap attacks.
        samples: Most validation images, and most reconstructions.
        moments: Batches to keep of every search besides its end.
    """
    asked = _checked(FisherPlan(plan=scene.plan, samples=samples, moments=moments))
    scene = replace(scene, model=model, plan=_people(scene, asked))
    found = at_most(from_attacks(scene, builds, moments), samples)
    private, rows = _validation(scene, samples), _rows(scene)
    scene.progress.stage(f"Fisher information: {len(private)} private images, {len(found.labels)} reconstructions")
    run = Run(batch_size=chosen(scene.plan.batch_size, fisher.chunk_of(model.classifier)))
    with scene.clock.stage("fisher"):
        cls, mi = (
            Sample(
                fisher.empirical(model.classifier, pixels.float() / 255, whose, rows, run).plain.numpy(), whose.numpy()
            )
            for pixels, whose in ((private.pixels, private.labels), (found.pixels, found.labels))
        )
    shown = profile(cls, mi, np.array([row.size for row in rows]), *DEFINITIONS[0])
    return shown, tuple(row.stage for row in rows[:-1])


def fisher_folder(wanted: FisherPlan) -> Path:
    """Where the profile is kept; without --out the name depends on what is measured, so re-typing resumes."""
    if wanted.plan.out is not None:
        return wanted.plan.out
    usual = run_folder_path(wanted.plan, "fisher")
    return usual.with_name(f"{usual.name}-{digest(wanted.run, wanted.samples, wanted.moments)[:4]}")


def fisher_plan_to_json(wanted: FisherPlan) -> dict[str, object]:
    """What `plan.json` holds, for `resume`."""
    about = {"run": wanted.run, "samples": wanted.samples, "moments": wanted.moments, "people": wanted.people}
    return {"kind": "fisher", "plan": plan_to_json(replace(wanted.plan, fresh=False)), "fisher": about}


def _checked(wanted: FisherPlan) -> FisherPlan:
    if wanted.samples < 2 or wanted.moments < 0 or wanted.people < 1:
        raise ConfigError(
            f"expected samples >= 2, moments >= 0 and people >= 1, "
            f"got {wanted.samples}, {wanted.moments}, {wanted.people}; raise them"
        )
    return wanted


def _check_knowledge(plan: Plan, builds: Mapping[str, Attack[Any, Any]]) -> None:
    needy = [name for name, attack in builds.items() if attack.recipes != (NO_PRIOR,)]
    if needy and plan.public is None:
        raise DataError(
            f"expected public images for the prior of {', '.join(needy)}, got none; give --public FOLDER, or --run RUN "
            "with reconstructions, or take --attacks deep-inversion"
        )


@contextmanager
def _open(wanted: FisherPlan, progress: ProgressSink) -> Iterator[Scene]:
    """Load model and data, create and lock the run folder; `runs/latest` stays what it was."""
    plan = wanted.plan
    if plan.private is None:
        raise DataError("expected images of the training classes, got none; give --private FOLDER")
    device = choose_device(plan.device)
    with RunFolder(fisher_folder(wanted)) as folder:
        if plan.fresh:
            folder.forget_jobs()
        folder.write_plan(fisher_plan_to_json(wanted))
        clock = Clock()
        try:
            with on_device(device):
                with clock.stage("load"):
                    scene = _load(plan, device, folder, clock, progress)
                yield scene
        finally:
            clock.write(folder, progress)


def _load(plan: Plan, device: str, folder: RunFolder, clock: Clock, progress: ProgressSink) -> Scene:
    progress.stage("Loading the model and the data")
    cache, model = Cache(plan.cache), load_planned_model(plan.model, device)
    size = choose_size(model.classifier.size, plan.size)
    splits = load_splits(
        str(plan.private), size, model.classifier.channels, convert_color=plan.convert_color, cache=cache
    )
    private = whole(splits)
    if plan.public is None:
        public, shared = replace(private.select(torch.zeros(0, dtype=torch.long)), name="none", fingerprint=""), ""
    else:
        public = load_dataset(plan.public, size, private.channels, convert_color=plan.convert_color, cache=cache)
        shared = overlap(private, public)
    progress.note(f"private: {len(private)} images of {len(private.classes)} classes; {size} px")
    return Scene(plan, device, model, splits, public, size, shared, folder, cache, clock, progress)


def _people(scene: Scene, wanted: FisherPlan) -> Plan:
    """The plan, with `all` classes replaced by as many as are needed."""
    classes = len(scene.splits.train.classes)
    if wanted.plan.classes != "all" or classes <= wanted.people:
        return wanted.plan
    return replace(wanted.plan, classes=f"random:{wanted.people}")


def _report(scene: Scene, wanted: FisherPlan, found: Inversions, facts: ModelFacts) -> FisherReport:
    private, rows = _validation(scene, wanted.samples), _rows(scene)
    tasks = {"classification": (private.pixels, private.labels), "inversion": (found.pixels, found.labels)}
    samples = {
        (task, labels, scale): Sample(squares.numpy(), whose.numpy())
        for task, (pixels, whose) in tasks.items()
        for labels, both in _both(scene, task, pixels, whose, rows).items()
        for scale, squares in both.items()
    }
    sizes = np.array([row.size for row in rows])
    profiles = tuple(
        profile(samples["classification", labels, scale], samples["inversion", labels, scale], sizes, labels, scale)
        for labels, scale in DEFINITIONS
    )
    cut, depth = profiles[0].cut, len(rows) - 1
    limits = (wanted.samples, scene.size, scene.plan.seed)
    return FisherReport(
        id=digest("fisher", facts.sha256, facts.class_order, private.fingerprint, found.ids, limits),
        tool=tool_versions(),
        device=scene.device,
        command=wanted.plan.command,
        model=facts,
        private=scene.data_facts()[0],
        samples=len(private),
        inversion=found.facts,
        units=tuple(UnitFacts(name=r.name, kind=r.kind, stage=r.stage, parameters=r.size) for r in rows),
        profiles=profiles,
        freeze=spec_of(cut, depth) if cut else None,
        cautions=cautions(facts, found.facts, profiles, len(private.labels.unique())),
    )


def _rows(scene: Scene) -> tuple[fisher.Part, ...]:
    net = scene.model.classifier.to(scene.device)
    return fisher.parts(net, torch.zeros(1, net.channels, net.size, net.size, device=scene.device))


def _validation(scene: Scene, limit: int) -> Dataset:
    """Private validation images, as many of each person as can be."""
    return scene.splits.val.select(torch.from_numpy(evenly(scene.splits.val.labels.numpy(), limit)))


def _both(
    scene: Scene, task: str, pixels: Tensor, labels: Tensor, rows: tuple[fisher.Part, ...]
) -> dict[Labelling, dict[Scale, Tensor]]:
    """Squared gradients under both labellings; the scales `mean` and `total` share theirs."""
    net, images = scene.model.classifier, pixels.float() / 255
    scene.progress.stage(f"Fisher information for {task}: {len(images)} images")
    run = Run(
        batch_size=chosen(scene.plan.batch_size, fisher.chunk_of(net)),
        on_step=lambda what, done, total: scene.progress.step(f"{task}: {what}", done, total),
    )
    with scene.clock.stage(f"fisher {task}"):
        given = fisher.empirical(net, images, labels, rows, run)
        if net.num_classes <= EXACT:
            drawn = fisher.expected(net, images, rows, run)
        else:
            drawn = fisher.sampled(net, images, rows, stream(scene.plan.seed, "fisher", task), run)
    return {"empirical": _scales(given), "true": _scales(drawn)}


def _scales(squares: fisher.Squares) -> dict[Scale, Tensor]:
    return {"mean": squares.plain, "total": squares.plain, "scale-free": squares.scaled}


def cautions(
    model: ModelFacts, inversion: InversionFacts, profiles: tuple[Profile, ...], people: int
) -> tuple[str, ...]:
    """What to know before believing the profile; the first sentence always holds."""
    found = [LOCAL]
    if inversion.weak:
        found.append(
            "Weak profile: the reconstructions were made without an image prior and look like nobody. Give --public, "
            "or --run with the reconstructions of a stronger attack."
        )
    if inversion.moments == 1:
        found.append(
            "Only the end of each search was looked at, where the loss of inversion is smallest; the published "
            "definition takes pictures from all along it."
        )
    if inversion.accepted is not None and inversion.accepted < CONVERGED:
        found.append(
            f"The model accepts {inversion.accepted:.0%} of the reconstructions, expected at least {CONVERGED:.0%}: "
            "the gradients of inversion are those of an attack that did not converge."
        )
    if min(people, inversion.identities) < FEW:
        found.append(
            f"{people} people for classification and {inversion.identities} for inversion: intervals over fewer than "
            f"{FEW} are too narrow."
        )
    cuts = {f"{one.labels}, {one.scale}": one.cut for one in profiles}
    if len(set(cuts.values())) > 1:
        said = "; ".join(f"{name}: {cut}" for name, cut in cuts.items())
        found.append(f"The cut depends on how Fisher information is defined, in units: {said}.")
    if model.defense.get("method", "none") != "none":
        found.append("The model was trained with a defense: this is no profile of an undefended model.")
    return tuple(found)
