"""`--freeze auto[:delta]` in a run of `defend`: short trainings, a Fisher profile, and a few cuts that are attacked."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mi_audit.audit.attack import Court, audit_models
from mi_audit.audit.composition import UNDEFENDED, Composition, compose
from mi_audit.audit.fisher import first_cut
from mi_audit.audit.freezing_search import NONE, FreezeSearch, Trial, deepest_cut, search
from mi_audit.audit.judge import model_facts
from mi_audit.audit.plan import FREEZING
from mi_audit.audit.pretrain import PublicStart, fresh_private_model
from mi_audit.audit.retrain import Retraining, Trained, check_fit, fit_private, retrained
from mi_audit.audit.scene import Scene, as_settings
from mi_audit.core.attack import Attack
from mi_audit.core.defense import Slot
from mi_audit.core.errors import ConfigError
from mi_audit.nn.anatomy import units
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.freezing import parse
from mi_audit.nn.skips import installed
from mi_audit.store.files import make_folder
from mi_audit.train.accuracy import measured_accuracy
from mi_audit.train.recipe import Recipe

SHORT = 3  # a short training takes this part of the epochs
SEARCH_SEED = 1000  # added to the seed of the search's attacks, so that the final ones do not repeat them


def automatic(composition: Composition) -> float | None:
    """Accuracy that `--freeze auto` may cost, a share; None when the cut is given or nothing freezes."""
    cuts = [str(as_settings(part)["freeze"]) for part in composition.parts.values() if Slot.FREEZE in part.slots]
    cut = parse(cuts[0]) if cuts else None
    return cut.amount / 100 if cut and cut.kind == "auto" else None


def with_cut(scene: Scene, spec: str) -> Composition:
    """The defenses of the plan with this cut, which may be `none`."""
    plan = scene.plan.defend
    only = plan.method == "none"
    return compose(FREEZING if only else plan.method, plan.settings, spec)


def check_search(scene: Scene) -> None:
    """Find out whether a cut can be searched, before anything is trained for it.

    Raises:
        ConfigError: There are no validation images, there is no unit to choose, or a defense does not fit the network.
    """
    if not len(scene.splits.val):
        raise ConfigError(
            "expected validation images to search the freeze point with, got none; give --freeze a cut, such as 80%"
        )
    deepest_cut(*_room(scene, check_fit(scene, with_cut(scene, NONE).parts)))


def find_cut(
    scene: Scene, start: PublicStart, recipe: Recipe, court: Court, builds: Mapping[str, Attack[Any, Any]], delta: float
) -> FreezeSearch:
    """Find the cut of the plan's defense by Fisher information, accuracy, and the first attack of the plan.

    The profile is of a model without any defense; accuracies are of the plan's other defenses with each cut. The
    search attacks under a seed of its own. Its winner still had luck, under the first seed in its weights as well:
    trust the report of a run of several seeds.

    Args:
        scene: The plan, the data and the architecture.
        start: The public weights.
        recipe: Of the full training; short ones take a third of its epochs.
        court: Who judges the attacks.
        builds: The attacks of the plan.
        delta: Validation accuracy that may be lost, a share.
    """
    whole = with_cut(scene, "auto")  # without any cut, the part that freezes might be missing, and its phases with it
    phases = [phase for part in whole.parts.values() for phase in part.phases()]
    first = sum(phase.epochs for phase in phases if phase.when == "before")
    seed, short = scene.plan.seed, replace(recipe, epochs=max(1 + first, recipe.epochs // SHORT))
    cheap = dict(list(builds.items())[:1])

    def trained_shortly(composition: Composition, spec: str) -> Trained:
        scene.progress.stage(f"Searching the freeze point: {spec} ({short.epochs} epochs)")
        with scene.clock.stage("search freeze"):
            return fit_private(scene, Retraining(composition, start, short), seed, short, None)

    def val_accuracy(spec: str) -> float:
        return trained_shortly(with_cut(scene, spec), spec).fit.val_accuracy or 0.0

    def measured(spec: str) -> Trial:
        file = make_folder(scene.folder.path / "models" / "search") / f"{spec.replace('%', '')}.safetensors"
        how = Retraining(with_cut(scene, spec), start, recipe)
        model = retrained(scene, how, seed, file, f"candidate {spec}")
        facts = model_facts(model, measured_accuracy(model, scene.splits.test, scene.device), seed)
        plan = replace(
            scene.plan, seed=seed + SEARCH_SEED, seeds=1, controls=(), metrics=("attack-accuracy",), images="none",
            positive_control=False,
        )  # fmt: skip
        report = audit_models(
            replace(scene, plan=plan), {seed + SEARCH_SEED: (model, facts)}, court, cheap, f"search-{file.stem}"
        )
        found = report.attacks[0].measurement("attack_acc1")
        val = model.defense.get("val_accuracy")
        return Trial(
            accuracy=val if isinstance(val, float) else 0.0,
            attack=found.value if found and found.value is not None else 1.0,
        )

    profile, stages = first_cut(scene, trained_shortly(UNDEFENDED, "none").model, cheap)
    fresh, _ = fresh_private_model(scene, None, seed, with_cut(scene, NONE).parts)
    limit = _room(scene, fresh.classifier)[1]
    found = search(stages, delta, val_accuracy, start=profile.cut, measured=measured, limit=limit)
    scene.progress.note(f"--freeze auto: {found.spec}, {found.reason}")
    return found


def _room(scene: Scene, net: Classifier) -> tuple[int, int | None]:
    """Units of the network, and those before the first whose skip connection another defense changes: it must learn.

    Args:
        scene: The data.
        net: As the defenses without a cut change it.
    """
    blocks = {f"net.{name.rpartition('.')[0]}" for name in installed(net.net)}
    found = units(net, scene.splits.train.images(slice(0, 1), "cpu"))
    holds = (any(f"{block}.".startswith(f"{unit.name}.") for block in blocks) for unit in found)
    return len(found), next((place for place, inside in enumerate(holds) if inside), None)
