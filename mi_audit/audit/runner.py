"""One attack or control of an audit: its jobs, how a job is done, and what came of all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mi_audit.audit import control
from mi_audit.audit.batching import batch_of, default_batch, kept_batch
from mi_audit.audit.fitting import Knowledge
from mi_audit.audit.jobs import Job, Outcome, Step, execute
from mi_audit.audit.measure import Gallery, measure_attack
from mi_audit.audit.operations import carried_out, marks
from mi_audit.audit.plan import Plan
from mi_audit.audit.savings import Saving, Savings, open_to, savings_of, taken_facts
from mi_audit.audit.scene import Scene, as_settings
from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.prior import Prior
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.report import AttackResult, ModelFacts
from mi_audit.core.run import Averaging, Run
from mi_audit.core.target import Access, LabelOnlyTarget, QueryLedger, restricted
from mi_audit.nn import mixed_precision
from mi_audit.store.files import digest
from mi_audit.store.images import quantise
from mi_audit.store.targets import LoadedModel, new_model
from mi_audit.train.seeding import seeded

BATCH = 256  # pictures the target looks at once, without gradients
Targets = Mapping[int, tuple[LoadedModel, ModelFacts]]  # one per seed


def models_of(targets: Targets) -> dict[int, LoadedModel]:
    """The model of every seed."""
    return {seed: model for seed, (model, _) in targets.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """An attack or a control, as the runner sees it; it can be sent to another process.

    Attributes:
        facts: Name, role, threat model and settings, as they go into the report.
        version: Code version of the method.
        search: Reconstructs the classes of one job, given target, prior, classes and run.
        access: Cuts the target to what the method may see.
        uses: Which savings change anything about it.
    """

    facts: Mapping[str, Any]
    version: int
    search: Callable[[Any, Any, Tensor, Run], Reconstructions]
    access: Callable[[Any], Any]
    uses: frozenset[Saving] = frozenset()

    def saving(self, plan: Plan) -> "Contender":
        """The same, leaving out what the plan wants left out; that is a setting like its own."""
        savings = savings_of(plan, self.uses)
        if savings == Savings():
            return self
        facts = {**self.facts, "settings": self.facts["settings"] | savings.settings}
        return replace(self, facts=facts, search=partial(_granted, self.search, savings))


def _granted(
    search: Callable[[Any, Any, Tensor, Run], Reconstructions],
    savings: Savings,
    target: LabelOnlyTarget,
    prior: Prior,
    classes: Tensor,
    run: Run,
) -> Reconstructions:
    return search(target, prior, classes, savings.granted(run))


def averaging_of(plan: Plan, attack: Attack[Any, Any]) -> Averaging | None:
    """The views that the plan wants `attack` to average over; None for an attack that follows no gradient."""
    follows = attack.threat_model()[0].access == Access.WHITE_BOX
    return Averaging(plan.view_kind, plan.views) if plan.views > 1 and follows else None


def contender(
    name: str, attack: Attack[Any, Any], seeds: Sequence[int], averaging: Averaging | None = None
) -> Contender:
    """A published attack; its views, when there are any, are settings like its own."""
    access = attack.threat_model()[0].access
    views = {"averaged_views": averaging.count, "averaged_kind": averaging.kind} if averaging else {}
    facts = {
        "name": name,
        "role": "attack",
        "access": str(access),
        "prior": attack.recipes[0],
        "paper": str(attack.paper),
        "settings": as_settings(attack) | views,
        "seeds": tuple(seeds),
    }
    searched, seen = partial(_searched, attack, averaging), partial(restricted, access=access)
    return Contender(facts, attack.version, searched, seen, open_to(attack))


def _searched(
    attack: Attack[Any, Any],
    averaging: Averaging | None,
    target: LabelOnlyTarget,
    prior: Prior,
    classes: Tensor,
    run: Run,
) -> Reconstructions:
    return attack.run(target, prior, classes, replace(run, averaging=averaging))


def random_control(prior: str, seeds: Sequence[int]) -> Contender:
    """Random samples of a prior, measured like an attack."""
    sampler = control.RandomPriorSamples()
    facts = {
        "name": control.NAME if prior == control.USUAL_PRIOR else f"{control.NAME}:{prior}",
        "role": "control",
        "access": "none",
        "prior": prior,
        "paper": "",
        "settings": as_settings(sampler),
        "seeds": tuple(seeds),
    }
    return Contender(facts, 1, partial(_sampled, sampler), _unseen)


def _sampled(
    sampler: control.RandomPriorSamples, target: None, prior: Prior, classes: Tensor, run: Run
) -> Reconstructions:
    del target
    return sampler.run(prior, classes, run)


def _unseen(target: LabelOnlyTarget) -> None:
    del target


def untrained_control(
    name: str, attack: Attack[Any, Any], seeds: Sequence[int], averaging: Averaging | None = None
) -> Contender:
    """A published attack on a model that learned nothing: what prior and optimiser achieve alone."""
    one = contender(name, attack, seeds, averaging)
    return replace(one, facts={**one.facts, "name": f"{control.UNTRAINED}:{name}", "role": "control"})


def untrained(model: LoadedModel, seed: int) -> LoadedModel:
    """The architecture of `model` with fresh weights.

    Raises:
        ConfigError: The architecture cannot be built again from its name.
    """
    net = model.classifier
    if model.model_kwargs:
        raise ConfigError(
            f"expected an architecture without arguments for the control `untrained`, got {model.arch} with "
            f"{', '.join(model.model_kwargs)}; leave it out of --controls"
        )
    return new_model(
        model.arch, num_classes=net.num_classes, channels=net.channels, size=net.size, mean=net.mean_values,
        std=net.std_values, seed=seed,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """How the jobs of a contender are done, in this process or another: all that they need, and nothing of the run.

    Attributes:
        models, priors: What is attacked and what the attacker knows, by seed.
    """

    one: Contender
    models: Mapping[int, LoadedModel]
    priors: Mapping[int, Knowledge]
    plan: Plan
    device: str
    size: int

    def __call__(self, job: Job, on_step: Step) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Reconstruct the classes of the job, and ask the target what it takes the pictures for."""
        # a target that is random in itself draws the same whatever ran before, so a resumed run has the same bytes
        with carried_out(self.plan, self.device), seeded(self.device, job.seed, "job", job.id):
            return self._done(job, on_step)

    def _done(self, job: Job, on_step: Step) -> tuple[dict[str, Tensor], dict[str, object]]:
        model, plan = self.models[job.seed], self.plan
        target = model.target(QueryLedger(plan.max_queries), hasten=True)
        run = replace(self._run(job, on_step), queries=target.ledger.spent)
        classes = torch.tensor(job.classes, device=self.device)
        found = self.one.search(self.one.access(target), self.priors[job.seed].prior, classes, run)
        pixels = quantise(found.images.float()).cpu()
        labels = found.labels.cpu()
        looked = model.target()
        predicted = Run(batch_size=BATCH).map(
            lambda part: looked.labels(part.to(self.device).float() / 255).cpu(), pixels
        )
        tensors = {
            "images": pixels,
            "labels": labels,
            "confidence": found.confidence.detach().float().cpu(),
            "accepted": predicted == labels,
        }
        facts: dict[str, object] = {
            "id": job.id,
            "seed": job.seed,
            "settings": self.one.facts["settings"],
            "queries": {str(access): images for access, images in sorted(target.ledger.spent.items())},
            "work": dict(sorted(run.work.items())),
            "curves": [asdict(curve) for curve in found.curves],
            "precision": [asdict(decision) for decision in run.decisions],
        }
        return tensors, facts | ({"steps": taken_facts(run.taken)} if run.taken else {})

    def _run(self, job: Job, on_step: Step) -> Run:
        model, prior = self.models[job.seed].classifier, self.priors[job.seed].prior
        label = f"{job.attack}, seed {job.seed}, classes {job.classes[0]}-{job.classes[-1]}"
        return Run(
            seed=job.seed,
            batch_size=batch_of(self.plan.batch_size, self.device, self.size, model, prior),
            on_step=lambda stage, done, total: on_step(f"{label}: {stage}", done, total),
            precision="bf16" if self.plan.precision == "bf16" else "32",  # attacks are exact unless told otherwise
        )


@dataclass(frozen=True, slots=True, eq=False)
class Runner:
    """Runs contenders against one model per seed.

    Attributes:
        folder: Sub-folder of the pictures, such as `undefended`; also names the side in progress messages.
        attacked: Labels of the attacked classes; jobs take `chunk` of them in this order.
    """

    scene: Scene
    targets: Targets
    gallery: Gallery
    attacked: Sequence[int]
    folder: str

    def measured(
        self, one: Contender, priors: Mapping[int, Knowledge], permutation: Mapping[int, int] | None = None
    ) -> tuple[tuple[AttackResult, ...], list[str]]:
        """Run all jobs of a contender that have no result yet; return its measurements and the ids of its jobs.

        With a `permutation` of the classes the measurements of its control of permuted labels come second.
        """
        one = one.saving(self.scene.plan)
        scene, name = self.scene, str(one.facts["name"])
        jobs = list(self._jobs(one, priors))
        scene.progress.stage(f"{name}{f' on the {self.folder} model' if self.folder else ''}: {len(jobs)} job(s)")
        missing = any(scene.folder.read_job(job.name) is None for job in jobs)
        plan = replace(scene.plan, batch_size=self._batch(name, priors)) if missing else scene.plan
        task = Task(one, models_of(self.targets), priors, plan, scene.device, scene.size)
        outcomes: list[Outcome] = []
        with scene.clock.stage(f"{name} {self.folder}".strip()):
            for outcome in execute(jobs, task, scene.folder, scene.progress, scene.executor):
                scene.clock.spent(outcome.job.name, outcome.seconds)
                outcomes.append(outcome)
        place = "/".join(part for part in (self.folder, name.replace(":", "-")) if part)
        with scene.clock.stage("measure"):
            found = measure_attack(scene, self.gallery, outcomes, one.facts, place, permutation)
        return found, [job.id for job in jobs]

    def _batch(self, name: str, priors: Mapping[int, Knowledge]) -> int:
        """The batch size of the jobs of a contender, from what its first seed needs."""
        scene, (seed, (model, _)) = self.scene, next(iter(self.targets.items()))
        wanted, known = scene.plan.batch_size, priors[seed]
        key = f"{name} on {scene.device}, {digest('batch', model.sha256, known.sha256, scene.size)[:16]}"

        def choose() -> int:
            return batch_of(wanted, scene.device, scene.size, model.classifier, known.prior)

        return kept_batch(wanted, scene.folder, key, choose, default_batch(scene.device, scene.size))

    def _jobs(self, one: Contender, priors: Mapping[int, Knowledge]) -> Iterator[Job]:
        plan = self.scene.plan
        for seed, (model, _) in self.targets.items():
            net = model.classifier
            what = (one.facts["name"], one.version, one.facts["settings"], priors[seed].sha256, self.scene.size)
            whom = (model.sha256, model.arch, net.size, net.mean_values, net.std_values, net.order)
            mixed = plan.precision == "bf16" and mixed_precision.VERSION
            how = (plan.max_queries, mixed, self.scene.splits.train.fingerprint)
            for start in range(0, len(self.attacked), plan.chunk):
                chunk = tuple(sorted(self.attacked[start : start + plan.chunk]))
                key = digest("job", what, whom, how, chunk, seed, *marks(plan, self.scene.device))
                yield Job(str(one.facts["name"]), chunk, seed, key)
