"""From result files to numbers: what is measured are the 8-bit pictures as they were written."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mi_audit.audit import registry
from mi_audit.audit.control import measure_permuted, permuted
from mi_audit.audit.jobs import JobFailure, JobResult, Outcome
from mi_audit.audit.plan import Plan
from mi_audit.audit.savings import step_facts
from mi_audit.audit.scene import Scene
from mi_audit.core.dataset import Dataset
from mi_audit.core.metric import Evidence, Judge, Verification
from mi_audit.core.report import AttackResult, ClassValue, CurveFacts, Measurement, Picture, PrecisionFacts
from mi_audit.nn.intervals import by_class, share_interval, tables
from mi_audit.store.images import write_png

CONVERGED = 0.90  # share of its own reconstructions that the target must accept before a low number means anything


class Gallery:
    """The private pictures of the attacked classes with their evaluator features, computed once per audit."""

    def __init__(
        self,
        scene: Scene,
        judge: Judge,
        attacked: Sequence[int],
        verify: Verification | None = None,
        unverified: str = "no verifier was given",
    ) -> None:
        self.private, self.held_out = (_of(part, attacked) for part in (scene.splits.train, scene.splits.test))
        self.features: Tensor = judge.features(self.private.images())
        self.held_out_features = judge.features(self.held_out.images()) if len(self.held_out) else None
        self.judge, self.verify, self.unverified = judge, verify, unverified
        self._scene = scene

    def evidence(self, results: Sequence[JobResult]) -> Evidence:
        """All reconstructions of one attack, looked at once by the evaluator."""
        pixels = torch.cat([result.tensors["images"] for result in results])
        images = pixels.float() / 255
        return Evidence(
            pixels=pixels,
            labels=torch.cat([result.tensors["labels"] for result in results]),
            seeds=torch.cat([torch.full_like(r.tensors["labels"], r.job.seed) for r in results]),
            logits=self.judge.logits(images),
            features=self.judge.features(images),
            private=self.private,
            private_features=self.features,
            judge=self.judge,
            device=self._scene.device,
            confidence=torch.cat([result.tensors["confidence"] for result in results]),
            verify=self.verify,
            unverified=self.unverified,
            held_out=self.held_out if len(self.held_out) else None,
            held_out_features=self.held_out_features,
        )

    def nearest(self, feature: Tensor, label: int) -> str:
        """File of the private training image of class `label` whose features lie nearest."""
        rows = (self.private.labels == label).nonzero().squeeze(1)
        row = int(rows[(self.features[rows] - feature).square().sum(1).argmin()])
        file = f"images/nearest/{label:04d}-{row:06d}.png"
        write_png(self._scene.folder.path / file, self.private.pixels[row])
        return file


def _of(part: Dataset, attacked: Sequence[int]) -> Dataset:
    return part.select(torch.isin(part.labels, torch.tensor(attacked)).nonzero().squeeze(1))


def measure_attack(
    scene: Scene,
    gallery: Gallery,
    outcomes: Sequence[Outcome],
    facts: Mapping[str, Any],
    folder: str,
    permutation: Mapping[int, int] | None = None,
) -> tuple[AttackResult, ...]:
    """Every metric on the reconstructions of one attack, and its control of permuted labels if there is a permutation.

    `facts` are the fields known before it ran.
    """
    results = [outcome for outcome in outcomes if isinstance(outcome, JobResult)]
    failed = tuple(f"{o.job.name}: {o.message}" for o in outcomes if isinstance(o, JobFailure))
    if not results:
        return (AttackResult(measurements=(), queries={}, work={}, failed=failed, **facts),)
    evidence = gallery.evidence(results)
    accepted = torch.cat([result.tensors["accepted"] for result in results])
    acceptance = acceptance_of(accepted, evidence)
    measured = [acceptance]
    for name in scene.plan.metrics or tuple(name for name, metric in registry.metrics().items() if metric.default):
        method = registry.pick("metric", registry.metrics(), name)
        measured += registry.build("metric", method, name, {}).measure(evidence)
    result = AttackResult(
        measurements=tuple(measured),
        queries=_total(results, "queries"),
        work=_total(results, "work"),
        curves=_curves(results),
        precision=precision_of(results),
        steps=step_facts([result.facts.get("steps", []) for result in results]),  # type: ignore[misc]
        flags=_flags(acceptance) if facts["role"] == "attack" else (),
        failed=failed,
        pictures=_pictures(scene, gallery, evidence, results, accepted, folder),
        **facts,
    )
    if permutation is None:
        return (result,)
    return result, permuted(facts, measure_permuted(scene.plan.metrics, evidence, permutation))


def check_metrics(plan: Plan) -> None:
    """Refuse a metric that does not exist, before anything slow begins.

    Raises:
        ConfigError: There is none of that name.
    """
    for name in plan.metrics:
        registry.pick("metric", registry.metrics(), name)


def acceptance_of(accepted: Tensor, evidence: Evidence) -> Measurement:
    """Share of the pictures that the target itself assigns to the attacked class."""
    rows = per_class(accepted, evidence.labels, evidence.seeds)
    values, counts = tables(rows)
    return Measurement(
        name="target_acceptance",
        protocol="acceptance/image/all/none@target",
        value=float(accepted.float().mean()),
        unit="share",
        count=len(accepted),
        counted="images",
        interval=share_interval(values, weights=counts),
        leak_grows=None,
        per_class=rows,
    )


def per_class(values: Tensor, labels: Tensor, seeds: Tensor) -> tuple[ClassValue, ...]:
    """The mean of `values` in every (class, seed), ordered by both."""
    return by_class(values.double().numpy(), labels.numpy(), seeds.numpy())


def _flags(acceptance: Measurement) -> tuple[str, ...]:
    if acceptance.value is not None and acceptance.value >= CONVERGED:
        return ()
    return (
        f"NOT_CONVERGED: the target accepts {acceptance.value:.0%} of these reconstructions, expected at least "
        f"{CONVERGED:.0%}; a low attack accuracy may mean a weak attack, not a private model",
    )


def _total(results: Sequence[JobResult], name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.facts[name])  # type: ignore[call-overload]
    return dict(sorted(total.items()))


def _curves(results: Sequence[JobResult]) -> tuple[CurveFacts, ...]:
    """Mean over the jobs; all jobs of an attack record the same steps."""
    stacked: dict[tuple[str, tuple[int, ...]], list[tuple[float, ...]]] = {}
    for result in results:
        for curve in result.facts["curves"]:  # type: ignore[attr-defined]
            stacked.setdefault((curve["stage"], tuple(curve["steps"])), []).append(tuple(curve["losses"]))
    return tuple(
        CurveFacts(stage=stage, steps=steps, losses=tuple(float(loss) for loss in np.mean(losses, axis=0)))
        for (stage, steps), losses in stacked.items()
    )


def precision_of(results: Sequence[JobResult]) -> tuple[PrecisionFacts, ...]:
    """What the networks of every stage computed in, over all jobs; nothing of jobs that asked for single precision."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        for decision in result.facts.get("precision", ()):  # type: ignore[attr-defined]
            stages.setdefault(decision["stage"], []).append(decision)
    found = []
    for stage, decisions in stages.items():
        cosines = [one["cosine"] for one in decisions if one["cosine"] is not None]
        reasons = [one["reason"] for one in decisions if one["reason"]]
        found.append(
            PrecisionFacts(
                stage=stage,
                searches=len(decisions),
                mixed=sum(one["used"] == "bf16" for one in decisions),
                cosine=(min(cosines), max(cosines)) if cosines else None,
                reasons=tuple(dict.fromkeys(reasons)),
            )
        )
    return tuple(found)


def _pictures(
    scene: Scene, gallery: Gallery, evidence: Evidence, results: Sequence[JobResult], accepted: Tensor, folder: str
) -> tuple[Picture, ...]:
    """Write every reconstruction as PNG and name the surest one of each class under the first seed."""
    if scene.plan.images == "none":
        return ()
    confidence = torch.cat([result.tensors["confidence"] for result in results])
    hits = evidence.logits.argmax(1) == evidence.labels
    first = int(evidence.seeds.min())
    best: dict[int, tuple[float, int, str]] = {}
    place: Counter[tuple[int, int]] = Counter()
    for row, (label, seed) in enumerate(zip(evidence.labels.tolist(), evidence.seeds.tolist(), strict=True)):
        file = f"images/{folder}/s{seed}/{label:04d}-{place[label, seed]}.png"
        place[label, seed] += 1
        # always: what lies there may be of another model, for the folder is named by the settings, not the weights
        write_png(scene.folder.path / file, evidence.pixels[row])
        sure = float(confidence[row])
        if seed == first and (label not in best or sure > best[label][0]):
            best[label] = (sure, row, file)
    return tuple(
        Picture(
            label=label,
            seed=first,
            file=file,
            nearest=gallery.nearest(evidence.features[row], label),
            accepted=bool(accepted[row]),
            hit=bool(hits[row]),
        )
        for label, (_, row, file) in sorted(best.items())
    )
