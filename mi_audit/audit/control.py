"""The controls every attack is compared with: what the same numbers come to when the target had no part in them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mi_audit.audit import registry
from mi_audit.audit.compare import paired
from mi_audit.core.errors import ConfigError
from mi_audit.core.metric import Evidence
from mi_audit.core.prior import Prior
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.report import AttackResult, Measurement
from mi_audit.core.run import Run
from mi_audit.core.types import Labels

NAME = "control:random-prior"
USUAL_PRIOR = "gmi-gan"  # the control of any other prior carries that prior's name
PERMUTED, UNTRAINED = "control:permuted-labels", "control:untrained"
COUNTERFACTUAL = "control:counterfactual"
KINDS = ("random", "permuted", "untrained", "counterfactual")
ATTACKED = ("untrained", "counterfactual")  # models of their own, on which every attack runs again
BY_LABEL = ("attack-accuracy", "exposure")  # metrics that a permutation of the labels changes and a leak drives
LEAKAGE = {"exposure": "leakage", "attack_acc1": "leakage_acc1"}  # name of the difference to a control


@dataclass(frozen=True, kw_only=True)
class RandomPriorSamples:
    """Random samples of the prior, handed out to the classes blindly.

    What the evaluator recognises in them is the floor of every attack with this prior: prior plus judge, no target.

    Attributes:
        per_class: Images per class.
    """

    per_class: int = 5

    @torch.no_grad()
    def run(self, prior: Prior, classes: Labels, run: Run) -> Reconstructions:
        """`per_class` images for each of `classes`, ordered by class."""
        labels = classes.repeat_interleave(self.per_class)
        restarts = torch.arange(self.per_class, device=classes.device).repeat(len(classes))
        latents = prior.z.draw(run.streams(labels, restarts).normal("control", prior.z.width))
        images = run.map(prior.z.decode, latents)
        run.work["generator_forward"] += len(labels)
        return Reconstructions(images, labels, torch.zeros(len(labels), device=classes.device))


def chosen(wanted: Sequence[str]) -> tuple[str, ...]:
    """The controls that were asked for.

    Raises:
        ConfigError: There is no such control.
    """
    for name in wanted:
        if name not in KINDS:
            raise ConfigError(f"expected --controls out of {', '.join(KINDS)}, got {name!r}; correct it")
    return tuple(dict.fromkeys(wanted))


def derangement(attacked: Sequence[int], seed_text: str) -> dict[int, int] | None:
    """Another attacked class for every one of them, fixed by `seed_text`; None when there is only one.

    The classes are put in the order of a hash and each is sent to the next, the last to the first.
    """
    if len(attacked) < 2:
        return None
    ring = sorted(attacked, key=lambda label: hashlib.sha256(f"{seed_text}/{label}".encode()).digest())
    return dict(zip(ring, [*ring[1:], ring[0]], strict=True))


def measure_permuted(
    wanted: Sequence[str], evidence: Evidence, permutation: Mapping[int, int]
) -> tuple[Measurement, ...]:
    """The metrics that depend on labels, with every reconstruction of class c judged against `permutation[c]`.

    No two classes go to the same one, but a class may go to one that has no reconstructions. Per-class values keep the
    label c of the attack, so that both sides of a difference are the same pictures.
    """
    table = torch.zeros(max(permutation) + 1, dtype=torch.int64)
    table[list(permutation)] = torch.tensor(list(permutation.values()))
    judged = replace(evidence, labels=table[evidence.labels])
    back = {image: label for label, image in permutation.items()}
    found: list[Measurement] = []
    for name in BY_LABEL:
        if not wanted or name in wanted:
            method = registry.pick("metric", registry.metrics(), name)
            found += registry.build("metric", method, name, {}).measure(judged)
    return tuple(
        replace(
            one,
            per_class=tuple(
                sorted((replace(row, label=back[row.label]) for row in one.per_class), key=lambda r: (r.label, r.seed))
            ),
        )
        for one in found
    )


def permuted(facts: Mapping[str, Any], measurements: tuple[Measurement, ...]) -> AttackResult:
    """The control of permuted labels of the attack with these facts."""
    about = {**facts, "name": f"{PERMUTED}:{facts['name']}", "role": "control"}
    return AttackResult(measurements=measurements, queries={}, work={}, **about)


def with_leakage(results: Iterable[AttackResult]) -> tuple[AttackResult, ...]:
    """The results, with every attack compared with each of its controls."""
    results = tuple(results)
    controls = [one for one in results if one.floor]
    return tuple(
        replace(one, over_control=tuple(_over(one, [c for c in controls if belongs(c, one)])))
        if one.role == "attack"
        else one
        for one in results
    )


def belongs(control: AttackResult, attack: AttackResult) -> bool:
    """Whether it is a control of this attack: made from its pictures or by it, or drawn from its prior."""
    if control.name.startswith((PERMUTED, UNTRAINED, COUNTERFACTUAL)):
        return control.name.rpartition(":")[2] == attack.name
    return control.prior == attack.prior


def _over(attack: AttackResult, controls: Sequence[AttackResult]) -> Iterable[Measurement]:
    for control in controls:
        for metric, name in LEAKAGE.items():
            ours, floor = attack.measurement(metric), control.measurement(metric)
            if ours is not None and floor is not None and ours.value is not None and floor.value is not None:
                difference = paired(floor.per_class, ours.per_class, ours.unit)
                yield Measurement(
                    name=name,
                    protocol=f"{name}/{ours.protocol.partition('/')[2]}-over-{control.name}",
                    value=difference.value,
                    unit=difference.unit,
                    count=difference.count,
                    counted=difference.counted,
                    interval=difference.interval,
                    reason=difference.reason,
                    leak_grows=True,
                )
