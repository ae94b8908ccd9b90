"""The positive control: can these attacks, with this prior and budget, break a model that leaks on purpose?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mi_audit.audit.exposed import NAME as EXPOSURE
from mi_audit.audit.exposed import is_measured
from mi_audit.audit.fitting import Fitted, knowledge
from mi_audit.audit.plan import Plan
from mi_audit.audit.runner import BATCH, Contender, Runner, averaging_of, contender
from mi_audit.audit.scene import Scene
from mi_audit.core.attack import Attack
from mi_audit.core.errors import ConfigError
from mi_audit.core.report import POSITIVE, AttackResult, Measurement
from mi_audit.core.run import Averaging
from mi_audit.core.verdict import ValidityFlag
from mi_audit.nn import exact
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.templates import NearestTemplate, medoids, pyramid
from mi_audit.store.targets import LoadedModel
from mi_audit.store.weights import hash_weights

ID = "V2 POSITIVE_CONTROL"
ARCH = "nearest template"
ACCURACY = "attack_acc1"  # judged by where there is no verifier
LEAST = 0.50  # of the people, that must be broken with 95 % confidence
RECOGNISED = 0.50  # share of somebody's pictures from which they count as broken; exposure is 0 or 1
FEWEST = 5  # people of whom all have to be broken for the bound to reach one half


def is_wanted(plan: Plan) -> bool:
    """Whether the plan asks for it; unless it says so itself, `thorough` does, and so does a policy that needs it."""
    if plan.positive_control is not None:
        return plan.positive_control
    return plan.profile == "thorough" or plan.decision.policy == "audit-v1"


def controls(runner: Runner, builds: Mapping[str, Attack[Any, Any]]) -> tuple[tuple[AttackResult, ...], list[str]]:
    """Every attack on the leaky model with the same classes, seeds, prior and budget; nothing unless it is wanted.

    Returns:
        The results, with the role of a control, and the ids of the jobs.
    """
    scene = runner.scene
    if not is_wanted(scene.plan):
        return (), []
    model, seeds = leaky_model(scene), tuple(runner.targets)
    leaky = replace(runner, targets={seed: (model, facts) for seed, (_, facts) in runner.targets.items()})
    fitted: dict[str, dict[int, Fitted]] = {}
    results: list[AttackResult] = []
    ids: list[str] = []
    for name, attack in builds.items():
        known = knowledge(scene, attack, dict.fromkeys(seeds, model), fitted)
        found, jobs = leaky.measured(positive_control(name, attack, seeds, averaging_of(scene.plan, attack)), known)
        results += found
        ids += jobs
    scene.progress.note(f"positive control: {suite_works(results, runner.attacked).detail}")
    return tuple(results), ids


def positive_control(
    name: str, attack: Attack[Any, Any], seeds: Sequence[int], averaging: Averaging | None = None
) -> Contender:
    """A published attack on the leaky model."""
    one = contender(name, attack, seeds, averaging)
    return replace(one, facts={**one.facts, "name": f"{POSITIVE}:{name}", "role": "control"})


def leaky_model(scene: Scene) -> LoadedModel:
    """A classifier of the private classes that knows each by its most typical training picture, blurred.

    It leaks by construction: its surest picture of a class is that picture. It asks the prior for nothing but a picture
    that looks alike at a quarter to half of the resolution. Neither the model under audit, which may be defended, nor
    the evaluator or the verifier, which judge the outcome, has a part in it.

    Raises:
        ConfigError: A class has no training picture, or there is only one class.
    """
    check_people(scene)
    train = scene.splits.train
    copies = torch.cat([pyramid(part.float() / 255) for part in train.pixels.split(BATCH)])
    typical = train.images(medoids(copies, train.labels, len(train.classes)))
    net = NearestTemplate(typical)
    classifier = Classifier(net, size=train.size, channels=train.channels, mean=(0.0,), std=(1.0,)).to(scene.device)
    return LoadedModel(classifier, "made by mi-audit", ARCH, hash_weights(net.state_dict()), class_names=train.classes)


def check_people(scene: Scene) -> None:
    """Refuse data that no leaky model can be made of.

    Raises:
        ConfigError: A class has no training picture, or there is only one class.
    """
    train = scene.splits.train
    counts = train.labels.bincount(minlength=len(train.classes))
    if len(counts) < 2 or not bool(counts.all()):
        raise ConfigError(
            "expected two classes or more with a training picture each for the positive control, got "
            f"{int((counts > 0).sum())} of {len(counts)}; add pictures, or give --no-positive-control"
        )


def suite_works(results: Sequence[AttackResult], attacked: Sequence[int]) -> ValidityFlag:
    """V2: the attacks together break at least half of the people that the leaky model knows, with 95 % confidence.

    Somebody is broken when the verifier recognises them in the surest picture by any attack under any seed; without a
    verifier, when the evaluator does in at least half of the pictures by one attack under one seed. Who has no value
    is not broken. The bound is that of Clopper and Pearson: 15 of 20 people are enough, or 20 of 30, or 5 of 5.
    """
    if not results:
        return ValidityFlag(id=ID, passed=None, detail="not run", clears="give --positive-control")
    judged = EXPOSURE if any(map(is_measured, results)) else ACCURACY
    measured = {result.name.rpartition(":")[2]: result.measurement(judged) for result in results}
    found = {name: one for name, one in measured.items() if one is not None and one.value is not None}
    if not found and not any(result.failed for result in results):
        asked = "measure exposure or attack-accuracy, too"
        return ValidityFlag(id=ID, passed=None, detail="not judged: no metric says who was recognised", clears=asked)
    by_attack = {name: _recognised(one).intersection(attacked) for name, one in found.items()}
    broken = {label for labels in by_attack.values() for label in labels}
    least = exact.lower_share(len(broken), len(attacked))
    shares = ", ".join(f"{name} {len(labels)}" for name, labels in by_attack.items())
    detail = (
        f"of a model that leaks on purpose the attacks expose {len(broken)} of {len(attacked)} people to the "
        f"{'verifier' if judged == EXPOSURE else 'evaluator'}{f' ({shares})' if shares else ''}: with 95 % confidence "
        f"at least {least:.1%}, {LEAST:.0%} are needed"
    )
    few = f"attack at least {FEWEST} people; " if len(attacked) < FEWEST else ""
    clears = (
        f"{few}these attacks could not find a leak that is there: give a prior nearer to the private data, more steps "
        "or restarts, or a verifier that recognises more people"
    )
    return ValidityFlag(id=ID, passed=least >= LEAST, detail=detail, clears="" if least >= LEAST else clears)


def _recognised(found: Measurement) -> frozenset[int]:
    return frozenset(row.label for row in found.per_class if row.value >= RECOGNISED)
