"""Run the attacks of a plan against a model and report what leaked."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mi_audit.audit import positive, registry
from mi_audit.audit.classes import select_classes
from mi_audit.audit.control import chosen, derangement, with_leakage
from mi_audit.audit.counterfactual import (
    Counterfactual,
    check_counterfactual,
    counterfactual,
    counterfactual_control,
    doubted,
)
from mi_audit.audit.declared import reproduced
from mi_audit.audit.exposed import NAME, drawing_order
from mi_audit.audit.fitting import Fitted, assemble, knowledge
from mi_audit.audit.gate import judge as judge_rules
from mi_audit.audit.identify import identify
from mi_audit.audit.judge import as_judge, load_evaluator, model_facts
from mi_audit.audit.measure import Gallery, check_metrics
from mi_audit.audit.plan import Plan
from mi_audit.audit.progress import ProgressSink, Silent
from mi_audit.audit.runner import (
    Runner,
    Targets,
    averaging_of,
    contender,
    models_of,
    random_control,
    untrained,
    untrained_control,
)
from mi_audit.audit.savings import limits, without_effect
from mi_audit.audit.scene import Scene, open_scene
from mi_audit.audit.stopping import enough_people, stops_early
from mi_audit.audit.validity import check
from mi_audit.audit.verifier import Verifier, load_verifier
from mi_audit.audit.versions import tool_versions
from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.prior import Prior
from mi_audit.core.report import AttackResult, AuditReport, Comparison, ModelFacts, Verdict
from mi_audit.store.files import digest
from mi_audit.store.results import read_result, write_result
from mi_audit.store.targets import LoadedModel

LIMITS = (
    "A low number is no proof of anonymity: it says that these attacks, with this prior and budget, did not succeed.",
    "Attack accuracy counts images that the evaluator assigns to a person; an image can convince a classifier without "
    "resembling anybody. Look at the pictures, and compare with the control of random prior samples.",
    "Intervals describe the choice of identities and seeds, not other priors, other evaluators or stronger attacks.",
)


@dataclass(frozen=True, slots=True, eq=False)
class Court:
    """The evaluator and the verifier, ready to look at pictures."""

    model: LoadedModel
    facts: ModelFacts
    verifier: Verifier


def run_attack(plan: Plan, progress: ProgressSink | None = None) -> AuditReport:
    """Attack the model of `plan`, measure what leaked, judge it, and write `result.json` into the run folder.

    Finished jobs of an earlier, interrupted run of the same plan are kept, so the result has the same bytes.

    Raises:
        AuditError: Any of its kinds; see `mi_audit.core.errors`.
    """
    builds = build_attacks(plan)
    check_metrics(plan)
    with open_scene(plan, "attack", progress or Silent()) as scene:
        model, measured = identify(scene.model, scene.splits.test, scene.device)
        scene.progress.note(
            f"target {model.arch}: accuracy {measured.value:.3f} on {measured.count} private test images"
        )
        facts = model_facts(model, measured)
        check_controls(replace(scene, model=model))
        report = audit_models(scene, {seed: (model, facts) for seed in seeds_of(plan)}, load_court(scene), builds)
        report = replace(report, verdict=verdict_of(report, plan))
        write_result(scene.folder.path / "result.json", report)
        discard_pictures(scene)
        return report


def seeds_of(plan: Plan) -> range:
    """The seeds of a run."""
    return range(plan.seed, plan.seed + plan.seeds)


def load_court(scene: Scene) -> Court:
    """The evaluator and the verifier of the plan."""
    model, facts = load_evaluator(scene)
    return Court(model, facts, load_verifier(scene, (scene.model, model), attacked_classes(scene)))


def verdict_of(result: AuditReport | Comparison, plan: Plan) -> Verdict | None:
    """The outcome of the plan's gate; None when it has no rules."""
    baseline = read_result(plan.baseline) if plan.baseline else None
    return judge_rules(result, plan.rules, baseline, plan.max_regression, plan.decision, plan.waivers)


def build_attacks(plan: Plan) -> dict[str, Attack[Any, Any]]:
    """The attacks of the plan with the settings of its profile, overridden by the user's.

    Raises:
        ConfigError: An attack or a setting is unknown, or there is no attack at all.
    """
    if not plan.attacks:
        raise ConfigError("expected at least one attack, got none; name some with --attacks")
    builds = {}
    for item in plan.attacks:
        method = registry.pick("attack", registry.attacks(), item.name)
        preset = dict(method.quick) if plan.profile == "quick" else {}
        builds[item.name] = registry.build("attack", method, item.name, preset | dict(item.settings))
    return builds


def check_controls(scene: Scene, *, trains: bool = False) -> None:
    """Refuse controls that cannot work here, before anything slow begins.

    Args:
        scene: The plan, the data, and the model under audit as the attacks will see it.
        trains: The models under audit are trained in this run.

    Raises:
        AuditError: One of them cannot be made.
    """
    if "untrained" in chosen(scene.plan.controls) and not trains:  # models that are trained here can be built again
        untrained(scene.model, scene.plan.seed)
    if positive.is_wanted(scene.plan):
        positive.check_people(scene)
    check_counterfactual(scene, attacked_classes(scene), trains=trains)


def audit_models(
    scene: Scene,
    targets: Targets,
    court: Court,
    builds: Mapping[str, Attack[Any, Any]],
    folder: str = "",
    people: Sequence[int] = (),
) -> AuditReport:
    """Attack one model per seed with every attack, add the controls, and measure; pictures go below `folder`.

    The classes are `people`; by default those of the plan, or as many of them as a sequential gate needs.
    """
    planned = attacked_classes(scene)
    other = counterfactual(scene, targets, planned)
    if not people and stops_early(scene.plan):
        sketch = replace(scene, plan=replace(scene.plan, metrics=(NAME,), images="none", positive_control=False))
        people = enough_people(
            drawing_order(planned, next(facts for _, facts in targets.values()).sha256),
            scene.plan.chunk,
            lambda some: _audit(sketch, targets, court, builds, folder, some, other),
            scene.plan.decision,
            scene.progress,
        )
    report = _audit(scene, targets, court, builds, folder, people or planned, other)
    return replace(report, planned=planned if len(report.attacked) < len(planned) else ())


def _audit(
    scene: Scene,
    targets: Targets,
    court: Court,
    builds: Mapping[str, Attack[Any, Any]],
    folder: str,
    attacked: Sequence[int],
    other: Counterfactual | None,
) -> AuditReport:
    verifier = court.verifier
    if scene.plan.views > 1 and not any(averaging_of(scene.plan, attack) for attack in builds.values()):
        scene.warn("--views changed nothing: no attack of this run is white-box")
    for text in without_effect(scene.plan, builds.values()):
        scene.warn(text)
    judge = as_judge(court.model, scene.device)
    gallery = Gallery(scene, judge, attacked, verifier.verification, verifier.missing)
    runner = Runner(scene, targets, gallery, attacked, folder)
    results, ids, priors = run_all(runner, builds, other)
    leaky, leaky_ids = positive.controls(runner, builds)
    accuracy = reproduced([facts for _, facts in targets.values()], scene.plan.declared_accuracy)
    checks = check(scene, targets, attacked, results, builds, verifier.facts)
    flags = (accuracy, positive.suite_works(leaky, attacked), *checks)
    used = [prior for fitted in priors.values() for prior in fitted.values()]
    private, public = scene.data_facts()
    papers = [attack.paper for attack in builds.values()] + [registry.priors()[name].paper for name in priors]
    return AuditReport(
        id=digest(
            "audit",
            [*ids, *leaky_ids],
            court.facts.sha256,
            scene.plan.metrics,
            scene.plan.controls,
            sha256_of(verifier),
            scene.plan.declared_accuracy,
        ),
        tool=tool_versions(),
        device=scene.device,
        command=scene.plan.command,
        profile=scene.plan.profile,
        targets=tuple({facts.sha256: facts for _, facts in targets.values()}.values()),
        evaluator=court.facts,
        private=private,
        public=public,
        overlap=scene.overlap,
        priors=tuple({prior.facts.sha256: prior.facts for prior in used}.values()),
        classes=scene.splits.train.classes,
        attacked=tuple(sorted(attacked)),
        attacks=(*results, *leaky),
        warnings=tuple(scene.warnings),
        limits=(*LIMITS, *limits(scene.plan)),
        papers=tuple(dict.fromkeys(str(paper) for paper in papers)),
        validity=flags,
        verifier=verifier.facts,
    )


def run_all(
    runner: Runner, builds: Mapping[str, Attack[Any, Any]], other: Counterfactual | None = None
) -> tuple[tuple[AttackResult, ...], list[str], dict[str, dict[int, Fitted]]]:
    """Every attack and every control of the plan: results, attacks first; ids of the jobs; what was fitted, by seed."""
    scene, targets = runner.scene, runner.targets
    kinds = chosen(scene.plan.controls)
    seeds = tuple(targets)
    permutation = _permutation(runner) if "permuted" in kinds else None
    priors: dict[str, dict[int, Fitted]] = {}
    attacks: list[AttackResult] = []
    permuted: list[AttackResult] = []
    others: list[AttackResult] = []
    ids: list[str] = []
    for name, attack in builds.items():
        known = knowledge(scene, attack, models_of(targets), priors)
        one = contender(name, attack, seeds, averaging_of(scene.plan, attack))
        (result, *floors), jobs = runner.measured(one, known, permutation)
        attacks.append(result)
        permuted += floors
        ids += jobs
    if "random" in kinds:
        for name, fitted in priors.items():
            if isinstance(fitted[seeds[0]].made, Prior):
                alone = {seed: assemble([one]) for seed, one in fitted.items()}
                found, jobs = runner.measured(random_control(name, seeds), alone)
                others += found
                ids += jobs
    if "untrained" in kinds:
        blank = replace(runner, targets={seed: (untrained(model, seed), f) for seed, (model, f) in targets.items()})
        asked: dict[str, dict[int, Fitted]] = {}
        for name, attack in builds.items():
            known = knowledge(scene, attack, models_of(blank.targets), asked)
            one = untrained_control(name, attack, seeds, averaging_of(scene.plan, attack))
            found, jobs = blank.measured(one, known)
            others += found
            ids += jobs
    if other is not None:
        met, asked = replace(runner, targets=other.targets), {}
        for name, attack in builds.items():
            known = knowledge(scene, attack, models_of(other.targets), asked)
            averaging = averaging_of(scene.plan, attack)
            found, jobs = met.measured(counterfactual_control(name, attack, seeds, averaging, other.note), known)
            others += map(doubted, found)
            ids += jobs
    return with_leakage([*attacks, *others, *permuted]), ids, priors


def _permutation(runner: Runner) -> dict[int, int] | None:
    """Another planned class for every attacked one; the same at every look of a run that stops early."""
    scene = runner.scene
    planned = derangement(attacked_classes(scene), scene.splits.train.fingerprint)
    return None if planned is None else {label: planned[label] for label in runner.attacked}


def sha256_of(verifier: Verifier) -> str:
    """Hash of the verifier's weights; empty when there is none."""
    return verifier.facts.sha256 if verifier.facts else ""


def attacked_classes(scene: Scene) -> tuple[int, ...]:
    """Labels of the classes that the plan names."""
    train = scene.splits.train
    return select_classes(scene.plan.classes, len(train.classes), f"{train.fingerprint}/{scene.plan.seed}")


def discard_pictures(scene: Scene) -> None:
    """With `--images none` no picture outlives the run, in particular no job file: they hold pixels."""
    if scene.plan.images == "none":
        for name in ("jobs", "images"):  # images: of an earlier run in this folder that kept them
            shutil.rmtree(scene.folder.path / name, ignore_errors=True)
