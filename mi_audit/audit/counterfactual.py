"""The control of a counterfactual target: the same attacks on a model that never met the attacked people.

What they yield there has nothing to do with memorising these people; what they yield beyond it, does. The model is
trained like the undefended twin of `defend`, or like the model under audit where its manifest says how that was
trained; `mi_audit.audit.strangers` says on what. A model that its owner trained takes its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from mi_audit.audit import registry
from mi_audit.audit.composition import UNDEFENDED, Composition, compose
from mi_audit.audit.control import COUNTERFACTUAL, chosen
from mi_audit.audit.identify import identify
from mi_audit.audit.judge import model_facts
from mi_audit.audit.measure import CONVERGED
from mi_audit.audit.plan import ModelPlan
from mi_audit.audit.pretrain import fresh_private_model, is_labelled, public_start
from mi_audit.audit.recognised import GIVE, Seen, doubts, figures, recognised, rows
from mi_audit.audit.retrain import Retraining, defend_recipe, retrained
from mi_audit.audit.runner import Contender, Targets, contender
from mi_audit.audit.scene import Scene, as_settings, load_planned_model
from mi_audit.audit.strangers import Purged, Seating, purged, seated
from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError, TargetError
from mi_audit.core.report import AttackResult, ModelFacts
from mi_audit.core.run import Averaging
from mi_audit.store.files import digest
from mi_audit.store.targets import LoadedModel
from mi_audit.train.recipe import Recipe, stated_recipe

VERSION = 2  # raised when the same settings would train another counterfactual target


@dataclass(frozen=True, slots=True, eq=False)
class Counterfactual:
    """The targets that never met the attacked people.

    Attributes:
        targets: One per seed.
        note: What they were trained on and how good they are, for the report.
    """

    targets: Targets
    note: str


def check_counterfactual(scene: Scene, attacked: Sequence[int], *, trains: bool = False) -> None:
    """Refuse what cannot work before anything slow begins; free when the control was not asked for.

    Args:
        scene: The plan, and the model under audit as the attacks will see it.
        attacked: Labels of the attacked classes.
        trains: The models under audit are trained in this run.

    Raises:
        ConfigError: The control and its model do not go together, or the model cannot be trained here.
        TargetError: The model that was given cannot be loaded.
    """
    wanted, given = "counterfactual" in chosen(scene.plan.controls), scene.plan.counterfactual
    if given != "auto" and not wanted:
        raise ConfigError(
            "expected counterfactual among the controls, got a model for it alone; "
            "add --controls random,permuted,counterfactual"
        )
    if given != "auto" and trains:
        raise ConfigError(
            f"expected no --counterfactual for models that are trained in this run, got {given}; leave it out, so that "
            "one is trained for each of them"
        )
    if not wanted:
        return
    if given != "auto":
        _owners(scene, scene.model)
        return
    if not trains:
        _rebuilt(scene.model)
        counterfactual_recipe(scene)
    if scene.model.model_kwargs:
        raise ConfigError(
            f"expected an architecture without arguments for the control `counterfactual`, got {scene.model.arch} with "
            f"{', '.join(scene.model.model_kwargs)}; {GIVE}"
        )
    try:
        fresh_private_model(scene, None, 0, {})
    except TargetError as error:
        raise ConfigError(f"{error}; or {GIVE}") from error
    if len(set(scene.splits.train.labels.tolist()) - set(attacked)) < 2:
        lesson(purged(scene.splits, scene.public, attacked), scene.plan.seed)


def lesson(left: Purged, seed: int) -> Seating:
    """What the counterfactual target of `seed` is trained on.

    Raises:
        ConfigError: Fewer than two people are left to tell apart.
    """
    seating = seated(left, seed)
    people = len(seating.splits.train.labels.unique())
    if people < 2:
        raise ConfigError(
            f"expected two people or more to train a counterfactual target on, got {people}: "
            f"{len(left.needs)} of {len(left.splits.train.classes)} classes are attacked and no labelled public data "
            f"take their place; attack fewer --classes, give --public in one folder per person, or {GIVE}"
        )
    return seating


def counterfactual(scene: Scene, targets: Targets, people: Sequence[int]) -> Counterfactual | None:
    """The counterfactual target of every model, without `people`; None when the control was not asked for.

    `people` are all whom the plan attacks, even where a sequential gate stops before the last of them.
    """
    if "counterfactual" not in chosen(scene.plan.controls):
        return None
    if scene.plan.counterfactual != "auto":
        return _given(scene, targets, people)
    left = purged(scene.splits, scene.public, people)
    made: dict[int, tuple[LoadedModel, ModelFacts]] = {}
    measured: list[Seen] = []
    for seed, (model, _) in targets.items():
        seating = lesson(left, seed)
        net, said = _trained(replace(scene, model=model, splits=seating.splits, public=left.public), len(people), seed)
        measured.append(recognised(scene, net, model, people, seating.splits.test))
        made[seed] = (net, model_facts(net, measured[-1].own, seed))
    note = " ".join([said, _seats(seating), *figures(measured)])
    scene.progress.note(f"counterfactual target: {note}")
    doubts(scene, measured, seating, len(people))
    return Counterfactual(made, note)


def counterfactual_control(
    name: str, attack: Attack[Any, Any], seeds: Sequence[int], averaging: Averaging | None, note: str
) -> Contender:
    """A published attack on a model that never met the attacked people."""
    one = contender(name, attack, seeds, averaging)
    return replace(one, facts={**one.facts, "name": f"{COUNTERFACTUAL}:{name}", "role": "control", "note": note})


def doubted(result: AttackResult) -> AttackResult:
    """The control with a flag when its attack did not converge, so that it found less than it could have."""
    accepted = result.measurement("target_acceptance")
    if accepted is None or accepted.value is None or accepted.value >= CONVERGED:
        return result
    flag = (
        f"NOT_CONVERGED: the counterfactual target accepts {accepted.value:.0%} of these reconstructions, expected at "
        f"least {CONVERGED:.0%}; the floor may be too low"
    )
    return replace(result, flags=(*result.flags, flag))


def _trained(scene: Scene, people: int, seed: int) -> tuple[LoadedModel, str]:
    """The target trained on the splits of `scene` like its model, kept by content, and how in a sentence."""
    composition = _rebuilt(scene.model)
    recipe = counterfactual_recipe(scene)
    starts = scene.plan.defend.pretrained != "auto" or is_labelled(scene.public)
    start = public_start(scene, None) if starts else None
    net, splits = scene.model.classifier, scene.splits
    key = digest(
        "counterfactual", VERSION, scene.model.arch, net.size, net.channels, net.mean_values, net.std_values,
        splits.train.fingerprint, splits.val.fingerprint, scene.size, {**asdict(recipe), "precision": ""},
        {name: as_settings(part) for name, part in composition.parts.items()},
        start.facts["sha256"] if start else "", seed,
    )  # fmt: skip
    file = scene.cache.folder("counterfactuals", key) / "model.safetensors"
    made = retrained(scene, Retraining(composition, start, recipe), seed, file, "counterfactual")
    source = f"weights {start.facts['source']}" if start else "fresh weights"
    defended = f" with the defense {composition.method}" if composition.parts else ""
    said = (
        f"Trained by this tool{defended} without the {people} people to attack: {recipe.epochs} epochs on "
        f"{len(splits.train)} images, starting from {source}."
    )
    return replace(made, ref="trained by mi-audit"), said


def counterfactual_recipe(scene: Scene) -> Recipe:
    """The recipe in the manifest of the model under audit when this tool trained it, else that of `defend`.

    Raises:
        ConfigError: A value of the recipe in the manifest is none.
    """
    stated = scene.model.defense.get("recipe")
    if isinstance(stated, Mapping) and set(stated) == {field.name for field in fields(Recipe)}:
        return replace(stated_recipe(stated), precision=scene.plan.precision)
    return defend_recipe(scene)


def _rebuilt(model: LoadedModel) -> Composition:
    """The defenses that the model under audit declares, ready to train with.

    Raises:
        ConfigError: This tool does not have them, so that a model trained here would differ by more than the people.
    """
    method, settings = str(model.defense.get("method", "none")), model.defense.get("settings")
    if method == "none":
        return UNDEFENDED
    known = registry.defenses()
    if not isinstance(settings, Mapping) or any(name not in known for name in method.split("+")):
        raise ConfigError(
            f"expected a defense of this tool to train a counterfactual target with, got a model that declares "
            f"{method}; {GIVE} and with that defense"
        )
    return compose(method, settings)


def _owners(scene: Scene, model: LoadedModel) -> LoadedModel:
    """The model that the user names to take the place of `model`.

    Raises:
        ConfigError: It cannot take its place.
        TargetError: It cannot be loaded.
    """
    ref = scene.plan.counterfactual
    own_code = model.arch if model.arch.startswith("py:") else None
    given = load_planned_model(ModelPlan(ref=ref, arch=own_code), scene.device)
    outputs = model.classifier.num_classes
    if given.sha256 == model.sha256:
        raise ConfigError("expected a --counterfactual that is not the target, got the same weights; give another one")
    if given.classifier.num_classes != outputs:
        raise ConfigError(
            f"expected a --counterfactual of {outputs} outputs, got {given.classifier.num_classes} from {ref}; keep "
            "the outputs of the attacked people and train them on other people"
        )
    return given


def _given(scene: Scene, targets: Targets, people: Sequence[int]) -> Counterfactual:
    """The model that the user names, in the place of every target."""
    ref, model = scene.plan.counterfactual, next(iter(targets.values()))[0]
    given = _owners(scene, model)
    if given.arch != model.arch:
        scene.warn(f"the counterfactual target is {given.arch}, the model is {model.arch}: the floor may be another")
    others = rows(scene.splits.test, people, theirs=False)
    if len(others.labels.unique()) > 1:  # of one class alone nothing tells which reading is right
        given, _ = identify(given, others, scene.device)
    elif given.alternatives:
        raise ConfigError(
            f"expected a --counterfactual of one architecture, got {ref} that fits "
            f"{', '.join((given.arch, *given.alternatives))}; give one with a manifest or a sidecar"
        )
    measured = recognised(scene, given, model, people, others)
    said = f"{ref}, as given: it is for its owner to know that no attacked person is in its training data."
    note = " ".join([said, *figures([measured])])
    scene.progress.note(f"counterfactual target: {note}")
    doubts(scene, [measured], None, len(people))
    return Counterfactual(dict.fromkeys(targets, (given, model_facts(given, measured.own))), note)


def _seats(seating: Seating) -> str:
    """Who has the outputs of the people left out."""
    there, short = len(seating.strangers), len(seating.short)
    if not there:
        return "Their outputs have no images, because the public data have nobody for them."
    sentence = f"Strangers from the public data have the outputs of {there} of them"
    return f"{sentence}, {short} with fewer images than they had." if short else f"{sentence}."
