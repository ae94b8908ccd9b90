"""Reconstructions to measure the inversion task on: those that an earlier run kept, or new ones."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_audit.audit.attack import attacked_classes
from mi_audit.audit.batching import batch_of
from mi_audit.audit.executor import InProcess
from mi_audit.audit.fitting import Fitted, Knowledge, knowledge
from mi_audit.audit.jobs import Job, JobFailure, Perform, Step, execute
from mi_audit.audit.operations import marks
from mi_audit.audit.runner import BATCH
from mi_audit.audit.scene import Scene, as_settings
from mi_audit.audit.trajectory import Watched
from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError, DataError
from mi_audit.core.fisher import InversionFacts
from mi_audit.core.report import AuditReport, Comparison
from mi_audit.core.run import Run
from mi_audit.core.target import Access, QueryLedger, restricted
from mi_audit.core.types import Labels, Pixels
from mi_audit.nn.fisher_profile import evenly
from mi_audit.store.files import digest
from mi_audit.store.images import quantise, read_png
from mi_audit.store.latest import find_run
from mi_audit.store.results import read_result
from mi_audit.train.seeding import seeded

NO_PRIOR = "pixels"  # the recipe of attacks that know nothing of images
FILE = re.compile(r"(?P<label>\d+)-\d+\.png")


@dataclass(frozen=True, slots=True, eq=False)
class Inversions:
    """Pictures that were made to be taken for a class, on the CPU.

    Attributes:
        pixels, labels: 8-bit pictures and the class that each was made for.
        facts: Where they came from.
        ids: Of what they depend on.
    """

    pixels: Pixels
    labels: Labels
    facts: InversionFacts
    ids: tuple[str, ...]


def from_run(ref: str, sha256: str, attacks: Sequence[str] = ()) -> Inversions:
    """The pictures that an earlier run of `attack` or `defend` made of the model with the weights `sha256`.

    Args:
        ref: Run folder, such as `runs/latest`.
        sha256: Hash of the weights.
        attacks: Only these; empty takes all. Controls are never taken.

    Raises:
        ConfigError: There is no such run, or it lacks one of the attacks.
        DataError: It attacked another model, or kept no pictures.
    """
    folder = find_run(ref)
    result = read_result(folder)
    side, report, seeds = _side(result, sha256, ref)
    made = {one.name: one for one in report.attacks if one.role == "attack"}
    if missing := set(attacks) - set(made):
        raise ConfigError(f"expected attacks of the run {ref} ({', '.join(made)}), got {', '.join(sorted(missing))}")
    chosen = [one for name, one in made.items() if not attacks or name in attacks]
    names = [one.name.replace(":", "-") for one in chosen]
    places = [folder / "images" / side / name / f"s{seed}" for name in names for seed in seeds]
    files = [(file, int(found["label"])) for place in places for file in _pictures(place) if (found := _named(file))]
    if not files:
        raise DataError(
            f"expected pictures in {folder / 'images'}, got none; repeat that run with --images local, "
            "or leave out --run"
        )
    pixels = [read_png(file) for file, _ in files]
    if len({picture.shape for picture in pixels}) > 1:
        raise DataError(f"expected pictures of one size in {folder}, got several; name the attack with --attacks")
    labels = torch.tensor([label for _, label in files])
    shares = [one.measurement("target_acceptance") for one in chosen]
    known = [(share.value, share.count) for share in shares if share is not None and share.value is not None]
    facts = InversionFacts(
        source="run",
        run=ref,
        attacks=tuple(one.name for one in chosen),
        priors=tuple(dict.fromkeys(one.prior for one in chosen)),
        weak=all(one.prior == NO_PRIOR for one in chosen),
        moments=1,
        images=len(files),
        identities=len(labels.unique()),
        accepted=sum(value * count for value, count in known) / sum(count for _, count in known) if known else None,
    )
    return Inversions(torch.stack(pixels), labels, facts, (result.id, *facts.attacks))


def from_attacks(scene: Scene, builds: Mapping[str, Attack[Any, Any]], moments: int) -> Inversions:
    """New pictures of the classes of the plan, class by class, with moments of the way there where it can be watched.

    Finished classes of an interrupted run are kept.

    Args:
        scene: The model as the attacks will see it, and the public images.
        builds: The attacks.
        moments: Batches to keep of every search besides its end; 0 keeps the end alone.

    Raises:
        DataError: Every job failed.
    """
    models = {scene.plan.seed: scene.model}
    fitted: dict[str, dict[int, Fitted]] = {}
    pixels: list[Tensor] = []
    labels: list[Tensor] = []
    accepted: list[Tensor] = []
    ids: list[str] = []
    failures: list[str] = []
    most = 1
    for name, attack in builds.items():
        known = knowledge(scene, attack, models, fitted)[scene.plan.seed]
        jobs = [_job(scene, name, attack, known, label, moments) for label in attacked_classes(scene)]
        scene.progress.stage(f"{name}: {len(jobs)} classes")
        perform = _performer(scene, attack, known, moments)
        for outcome in execute(jobs, perform, scene.folder, scene.progress, InProcess(scene.device)):
            scene.progress.step(name, len(ids) % len(jobs) + 1, len(jobs))
            ids.append(outcome.job.id)
            if isinstance(outcome, JobFailure):
                failures.append(outcome.message)
                continue
            pixels.append(outcome.tensors["images"])
            labels.append(torch.full((len(pixels[-1]),), outcome.job.classes[0]))
            accepted.append(outcome.tensors["accepted"])
            most = max(most, int(str(outcome.facts["moments"])))
    if not pixels:
        raise DataError(f"expected reconstructions, got none: {failures[0]}; try another attack with --attacks")
    priors = tuple(dict.fromkeys(attack.recipes[0] for attack in builds.values()))
    whose = torch.cat(labels)
    facts = InversionFacts(
        source="attack",
        run="",
        attacks=tuple(builds),
        priors=priors,
        weak=priors == (NO_PRIOR,),
        moments=most,
        images=len(whose),
        identities=len(whose.unique()),
        accepted=float(torch.cat(accepted).float().mean()),
    )
    return Inversions(torch.cat(pixels), whose, facts, tuple(ids))


def at_most(found: Inversions, limit: int) -> Inversions:
    """No more than `limit` of the pictures, as evenly over the classes as can be."""
    rows = torch.from_numpy(evenly(found.labels.numpy(), limit))
    kept = found.labels[rows]
    facts = replace(found.facts, images=len(kept), identities=len(kept.unique()))
    return Inversions(found.pixels[rows], kept, facts, found.ids)


def _side(result: AuditReport | Comparison, sha256: str, ref: str) -> tuple[str, AuditReport, list[int]]:
    """Sub-folder of the pictures of the model, the report that it is in, and the seeds it was attacked under."""
    for side, report in _audits(result).items():
        for facts in report.targets:
            if facts.sha256 == sha256:
                every = sorted({seed for one in report.attacks for seed in one.seeds})
                return side, report, every if facts.seed is None else [facts.seed]
    raise DataError(
        f"expected a run that attacked this model ({sha256[:12]}), got {ref} of other weights; "
        "give the run of this model, or leave out --run"
    )


def _audits(result: AuditReport | Comparison) -> dict[str, AuditReport]:
    return {"undefended": result.before, "defended": result.after} if isinstance(result, Comparison) else {"": result}


def _pictures(place: Path) -> list[Path]:
    return sorted(place.glob("*.png")) if place.is_dir() else []


def _named(file: Path) -> re.Match[str] | None:
    return FILE.fullmatch(file.name)


def _job(scene: Scene, name: str, attack: Attack[Any, Any], known: Knowledge, label: int, moments: int) -> Job:
    net, plan = scene.model.classifier, scene.plan
    whom = (scene.model.sha256, scene.model.arch, net.size, net.mean_values, net.std_values, net.order)
    what = (name, attack.version, as_settings(attack), known.sha256, scene.size, moments, plan.max_queries)
    return Job(
        name, (label,), plan.seed, digest("fisher job", whom, what, label, plan.seed, *marks(plan, scene.device))
    )


def _performer(scene: Scene, attack: Attack[Any, Any], known: Knowledge, moments: int) -> Perform:
    def perform(job: Job, on_step: Step) -> tuple[dict[str, Tensor], dict[str, object]]:
        del on_step  # a job is one class: their number is the progress
        with scene.clock.job(job.name), seeded(scene.device, job.seed, "job", job.id):
            return _perform(scene, attack, known, moments, job)

    return perform


def _perform(
    scene: Scene, attack: Attack[Any, Any], known: Knowledge, moments: int, job: Job
) -> tuple[dict[str, Tensor], dict[str, object]]:
    target = scene.model.target(QueryLedger(scene.plan.max_queries))
    watched = Watched(target, max(1, moments), scene.size)
    access = attack.threat_model()[0].access
    seen = restricted(watched if moments and access == Access.WHITE_BOX else target, access)
    batch = batch_of(scene.plan.batch_size, scene.device, scene.size, scene.model.classifier, known.prior)
    run = Run(seed=job.seed, batch_size=batch, queries=target.ledger.spent)
    found = attack.run(seen, known.prior, torch.tensor(job.classes, device=scene.device), run)
    last = quantise(found.images.float()).cpu()
    looked = scene.model.target()
    predicted = [looked.labels(part.to(scene.device).float() / 255).cpu() for part in last.split(BATCH)]
    way = watched.pixels
    tensors = {"images": torch.cat([*way, last]), "accepted": torch.cat(predicted) == job.classes[0]}
    return tensors, {"id": job.id, "moments": len(way) + 1}
