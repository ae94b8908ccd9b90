"""What a run would do and how long it would take, from a probe of a few steps."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mi_audit.audit import registry
from mi_audit.audit.attack import attacked_classes, build_attacks
from mi_audit.audit.auto_freeze import automatic
from mi_audit.audit.batching import batch_of
from mi_audit.audit.composition import Composition, compose
from mi_audit.audit.control import ATTACKED, chosen
from mi_audit.audit.counterfactual import check_counterfactual, counterfactual_recipe
from mi_audit.audit.defend import composition_of
from mi_audit.audit.fitting import Fitted, assemble, cache_file, profile_settings
from mi_audit.audit.judge import evaluator_arch, evaluator_file, evaluator_recipe
from mi_audit.audit.plan import Plan
from mi_audit.audit.positive import is_wanted
from mi_audit.audit.pretrain import fresh_private_model, is_labelled, labelled_public, start_recipe
from mi_audit.audit.progress import ProgressSink, Silent
from mi_audit.audit.retrain import defend_recipe
from mi_audit.audit.runner import averaging_of
from mi_audit.audit.scene import Scene, as_settings, open_scene, whole
from mi_audit.audit.stopping import stops_early
from mi_audit.audit.verifier import verifier_file, verifier_lesson
from mi_audit.core.dataset import Dataset
from mi_audit.core.prior import AssistedPrior, Prior
from mi_audit.core.report import PriorFacts
from mi_audit.core.types import Images, Latents
from mi_audit.store.targets import new_model
from mi_audit.train.classifier import fit
from mi_audit.train.defended import fit_defended, freeze
from mi_audit.train.recipe import Recipe

PROBE_STEPS = 3
SEARCHED = 6  # full trainings that a search of the freeze point amounts to: some nine short ones and three or four full


@dataclass(frozen=True, slots=True)
class Estimate:
    """What would run.

    Attributes:
        rows: Pairs of what and how much, for printing.
        seconds: Expected time on this machine, without what is cached already.
        jobs: Number of attack jobs.
    """

    rows: tuple[tuple[str, str], ...]
    seconds: float
    jobs: int


def estimate(plan: Plan, kind: str, progress: ProgressSink | None = None) -> Estimate:
    """Load model and data, time a few steps of everything that is slow, and scale up. Nothing is attacked or saved.

    Args:
        plan: What would run.
        kind: `attack` or `defend`.
        progress: Who watches the probe.
    """
    if kind == "defend":
        composition_of(plan)  # what cannot be built needs no probe
    with open_scene(plan, kind, progress or Silent(), dry=True) as scene:
        private, attacked = whole(scene.splits), attacked_classes(scene)
        sides = 2 if kind == "defend" else 1  # the undefended twin and the defended model
        check_counterfactual(scene, attacked, trains=kind == "defend")
        rounds = {"attack": sides, **{f"control {name}": sides for name in chosen(plan.controls) if name in ATTACKED}}
        rounds["positive control"] = int(is_wanted(plan))  # both sides share the leaky model
        jobs = len(build_attacks(plan)) * sum(rounds.values()) * -(-len(attacked) // plan.chunk) * plan.seeds
        runs = {what: len(attacked) * plan.seeds * models for what, models in rounds.items()}
        parts = [*_priors(scene), *_trainings(scene, kind), *_attacks(scene, runs)]
        seconds = round(sum(spent for _, spent in parts), 1)
        net = scene.model.classifier
        rows = (
            ("model", f"{scene.model.arch}, {net.num_classes} classes, {scene.size} px, on {scene.device}"),
            ("private data", f"{len(private)} images of {len(private.classes)} classes"),
            ("public data", f"{len(scene.public)} images; overlap: {scene.overlap}"),
            ("attacked", f"{_at_most(plan)}{len(attacked)} classes, {plan.seeds} seed(s), {jobs} jobs"),
            *((what, _duration(spent)) for what, spent in parts),
            ("in all", _duration(seconds)),
        )
        return Estimate(rows, seconds, jobs)


def _at_most(plan: Plan) -> str:
    return "at most " if stops_early(plan) else ""


def _trainings(scene: Scene, kind: str) -> Iterator[tuple[str, float]]:
    plan = scene.plan
    if plan.evaluator == "auto":
        arch = plan.evaluator_arch or evaluator_arch(scene.model.arch, scene.size)
        channels = scene.splits.train.channels
        recipe = evaluator_recipe(scene.size, channels, plan.evaluator_epochs, plan.precision)
        if evaluator_file(scene, arch, recipe).is_file():
            yield f"evaluator {arch} (cached)", 0.0
        else:
            yield f"evaluator {arch} (once)", _training_seconds(scene, arch, recipe)
    if (lesson := verifier_lesson(scene, (scene.model,))) is not None:
        if verifier_file(scene, lesson).is_file():
            yield f"verifier {lesson.arch} (cached)", 0.0
        else:
            yield f"verifier {lesson.arch} (once)", _training_seconds(scene, lesson.arch, lesson.recipe, lesson.data)
    counterfactual = "counterfactual" in plan.controls and plan.counterfactual == "auto"
    if (kind == "defend" or counterfactual) and plan.defend.pretrained == "auto" and is_labelled(scene.public):
        data = labelled_public(scene.public)
        yield "public start (once)", _training_seconds(scene, scene.model.arch, start_recipe(scene, data), data)
    if kind == "defend":
        recipe, composition = defend_recipe(scene), composition_of(plan)
        plain = _training_seconds(scene, scene.model.arch, recipe)
        defended = _defended_seconds(scene, composition, recipe)
        yield f"training of {plan.seeds} undefended models", plan.seeds * plain
        yield f"training of {plan.seeds} models with {composition.method}", plan.seeds * defended
        if automatic(composition) is not None:
            yield "search of the freeze point (its attacks not counted)", SEARCHED * defended
    if counterfactual:
        recipe = defend_recipe(scene) if kind == "defend" else counterfactual_recipe(scene)
        models = plan.seeds * (2 if kind == "defend" else 1)
        seconds = _training_seconds(scene, scene.model.arch, recipe)  # as many images, where there are strangers
        yield f"training of {models} counterfactual models (once)", models * seconds


def _training_seconds(scene: Scene, arch: str, recipe: Recipe, data: Dataset | None = None) -> float:
    """Time one epoch on a few batches of `data`; None is the private training images."""
    train = data or scene.splits.train
    probe = train.select(torch.arange(min(len(train), 4 * recipe.batch_size)))
    nothing = train.select(torch.arange(0))
    net = scene.model.classifier
    model = new_model(
        arch, num_classes=len(train.classes), channels=train.channels, size=net.size, mean=net.mean_values,
        std=net.std_values, seed=0,
    )  # fmt: skip
    start = time.monotonic()
    fit(model.classifier, probe, nothing, replace(recipe, epochs=1), seed=0, device=scene.device, on_step=_ignore)
    return (time.monotonic() - start) * recipe.epochs * len(train) / len(probe)


def _defended_seconds(scene: Scene, composition: Composition, recipe: Recipe) -> float:
    """Time one epoch of every phase on a few batches; what does not fit the architecture is refused here."""
    train, parts = scene.splits.train, composition.parts
    if automatic(composition) is not None:
        parts = compose(composition.method, {n: as_settings(p) for n, p in parts.items()}, "none").parts
    probe = train.select(torch.arange(min(len(train), 4 * recipe.batch_size)))
    model, _ = fresh_private_model(scene, None, 0, parts)
    freeze(model.classifier, parts, probe.images(slice(0, 2)))
    phases = [phase for part in parts.values() for phase in part.phases()]
    before, after = (sum(phase.epochs for phase in phases if phase.when == when) for when in ("before", "after"))
    start = time.monotonic()
    fit_defended(
        model.classifier, probe, train.select(torch.arange(0)), replace(recipe, epochs=before + 1), parts, seed=0,
        device=scene.device, on_step=_ignore,
    )  # fmt: skip
    whole = (recipe.epochs + after) / (before + 1 + after)
    return (time.monotonic() - start) * whole * len(train) / len(probe)


def _priors(scene: Scene) -> Iterator[tuple[str, float]]:
    for name in dict.fromkeys(name for attack in build_attacks(scene.plan).values() for name in attack.recipes):
        method = registry.pick("prior", registry.priors(), name)
        recipe = registry.build("prior", method, name, profile_settings(name, method, scene.plan))
        if cache_file(scene.cache, name, recipe, scene.public, scene.size, scene.model).is_file():
            yield f"prior {name} (cached)", 0.0
            continue
        start = time.monotonic()
        _fit_shortly(scene, name)
        per_step = (time.monotonic() - start) / PROBE_STEPS
        steps = recipe.planned_steps(len(scene.public), scene.size, scene.public.channels)
        yield f"prior {name}, {steps:,} steps (once)", steps * per_step


def _attacks(scene: Scene, runs: Mapping[str, int]) -> Iterator[tuple[str, float]]:
    """Every attack on each of `runs`, classes by what they belong to; models of controls are taken to be as fast."""
    for name, attack in build_attacks(scene.plan).items():
        averaging = averaging_of(scene.plan, attack)
        most = "at most " if scene.plan.early_stop else ""
        views, told = (averaging.count, f" of {averaging.count} views") if averaging else (1, "")
        known = assemble([_fit_shortly(scene, recipe) for recipe in attack.recipes])
        seconds = _step_seconds(scene, known.prior, views)
        for what, classes in runs.items():
            if classes:
                steps = attack.sample_steps * classes
                yield f"{what} {name}, {most}{steps:,} image-steps{told}", steps * seconds


def _fit_shortly(scene: Scene, name: str) -> Fitted:
    """A prior or surrogates of the right size after a few training steps: as fast as good ones."""
    method = registry.pick("prior", registry.priors(), name)
    recipe = registry.build("prior", method, name, profile_settings(name, method, scene.plan))
    target = scene.model.target() if recipe.needs_target else None
    weights = recipe.shortened(PROBE_STEPS).fit(scene.public, target, 0, scene.device, _ignore)
    made = recipe.restore(weights, scene.size, scene.public.channels, scene.device)
    return Fitted(name, made, PriorFacts(name=name, sha256="", settings={}))


def _step_seconds(scene: Scene, prior: Prior, views: int) -> float:
    """Time of one latent through the generator, and of `views` images through target and surrogates, both ways."""
    batch = batch_of(scene.plan.batch_size, scene.device, scene.size, scene.model.classifier, prior)
    space = prior.search
    surrogates = prior.surrogates.networks if isinstance(prior, AssistedPrior) else ()
    networks = (scene.model.target().logits, *surrogates)

    def judged(images: Images) -> Tensor:
        return torch.stack([network(images).sum() for network in networks])

    def latents() -> Latents:
        return space.draw(torch.zeros(batch, space.width, device=scene.device)).requires_grad_()

    whole = _seconds(scene, latents, lambda found: judged(space.decode(found)))
    if views > 1:
        whole += (views - 1) * _seconds(scene, lambda: space.decode(latents()).detach().requires_grad_(), judged)
    return whole / batch


def _seconds(scene: Scene, make: Callable[[], Tensor], network: Callable[[Tensor], Tensor]) -> float:
    """Time of a forward and a backward pass of `network` over a new input, on average over a few."""
    start = time.monotonic()
    for step in range(PROBE_STEPS + 1):
        if step == 1:
            start = time.monotonic()  # the first step warms up
        given = make()
        torch.autograd.grad(network(given).sum(), given)
    if scene.device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.monotonic() - start) / PROBE_STEPS


def _ignore(label: str, done: int, total: int) -> None:
    del label, done, total


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
