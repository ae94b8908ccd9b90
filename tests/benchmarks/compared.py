"""Compares what a plain loop and the engine found: first steps, whole searches, and the time to a rate."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mi_audit.core.early_stop import EarlyStop
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from tests.benchmarks import quality
from tests.benchmarks.cases import Case, Engine, Precision, Reference, Size
from tests.benchmarks.options import Options, timed
from tests.benchmarks.quality import Quality
from tests.benchmarks.reference import Found, counted
from tests.benchmarks.steady import uncompared
from tests.benchmarks.worlds import Built, build_world

Row = dict[str, Any]
SHARES = (0.25, 0.5)  # of the steps, after which the attack rate is looked at as well


@dataclass(frozen=True, slots=True)
class _Course:
    """What a candidate came to: seconds and rate, first of all steps, then of shares of them; and the final rows."""

    points: list[tuple[float, float]]
    losses: Tensor
    hits: Tensor
    labels: Tensor


def compared(case: Case, options: Options) -> dict[Precision, Row]:
    """The quality line of every precision, and the time to a share of the reference's final rate."""
    built = build_world(case.judged.world, options.cache, options.say)
    assert built.world.judged, "rates need an evaluator that learned"
    reference = Reference(case, built, options.device)
    near = case.timed if case.timed.world.images else case.judged  # first steps are compared on trained networks
    first = build_world(near.world, options.cache, options.say)
    beside = Reference(case, first, options.device)
    plain = _course(case, built, options, lambda size, seed: reference.run(size, seed=seed))
    wanted = quality.SHARE * plain.points[0][1]
    slow = quality.time_to_quality(plain.points, wanted)
    work, stop = counted(beside.networks)
    once = _one_batch(near.steps(0)) if "pool" in near.settings else near.distinct().steps(0)
    found = beside.run(once)
    stop()
    result = {}
    for precision in options.precisions:
        engine = Engine(case, built, options.device, precision)
        course = _course(case, built, options, lambda size, seed, engine=engine: engine.run(size, seed=seed), wanted)
        start = Engine(case, first, options.device, precision)
        line = _quality(start, once, found, work, course, plain, exact=precision == "32")
        early = _early(case, built, engine, options)
        fast = quality.time_to_quality([*course.points, (early["seconds"], early["rate"])], wanted)
        result[precision] = line.as_columns() | {
            "accuracy": list(built.accuracy or ()),
            "rate_wanted": wanted,
            "early_stop": early | {"seconds_without": course.points[0][0], "rate_without": course.points[0][1]},
            "time_to_quality_s": fast,
            "reference_time_to_quality_s": slow,
            "time_to_quality_ratio": slow / fast if slow and fast and wanted > 0 else None,
        }
    return result


def _early(case: Case, built: Built, engine: Engine, options: Options) -> dict[str, float]:
    """What leaving the batch when a loss stands still comes to: seconds, rate, and the share of the steps taken."""
    run = Run(batch_size=engine.batch, early_stop=EarlyStop())
    seconds, found = timed(lambda: engine.run(case.judged, run=run), options)
    rate = float(quality.hits(built.evaluator.to(options.device).eval(), found.images, found.labels).mean())
    rows = [(one, count) for one, count in run.taken.items()]
    share = sum(one.taken * count for one, count in rows) / sum(one.asked * count for one, count in rows)
    return {"seconds": seconds, "rate": rate, "steps": share}


def _quality(
    engine: Engine, once: Size, found: Found, work: Counter[str], course: _Course, plain: _Course, *, exact: bool
) -> Quality:
    """Compare the first step and the course."""
    run, rows = Run(batch_size=engine.batch), len(found.gradients)
    with uncompared(), quality.first_step() as whole:
        engine.run(once, run=run)
    with uncompared(), quality.first_step() as alone:
        engine.run(once, batch=1)
    together, apart = _first(whole, rows), _first(alone, rows)
    return quality.judge(
        gradients=(together[0].flatten(1)[:, : found.gradients[0].numel()], found.gradients),
        rebatched=quality.rebatched(together[0], apart[0]),
        moved=quality.moved_apart(together[1], apart[1]),
        work=(run.work, work),
        losses=(course.losses, plain.losses),
        hits=(course.hits, plain.hits),
        labels=course.labels,
        exact=exact,
    )


def _one_batch(size: Size) -> Size:
    """The same with classes for one batch of the plain loop, and few latents to select from."""
    few = {"pool": 2 * size.settings["restarts"]} if "pool" in size.settings else {}
    return replace(size, classes=min(size.classes, size.batch), settings=size.settings | few)


def _first(steps: list[tuple[Tensor, Tensor]], rows: int) -> tuple[Tensor, Tensor]:
    """Gradients and latents of the first `rows` rows; a second stage of a search starts over at step 0."""
    count = 0
    taken = []
    for step in steps:
        if count < rows:
            taken.append(step)
            count += len(step[0])
    return torch.cat([one for one, _ in taken]), torch.cat([two for _, two in taken])


def _course(
    case: Case,
    built: Built,
    options: Options,
    run: Callable[[Size, int], Found | Reconstructions],
    wanted: float | None = None,
) -> _Course:
    """Run all steps with every seed, and shares of them up to the first that reaches the rate `wanted`.

    When no rate is named, it is a share of the one that is found.
    """
    target, evaluator = (net.to(options.device).eval() for net in (built.target, built.evaluator))

    def after(share: float) -> tuple[tuple[float, float], Found | Reconstructions]:
        seconds, found = timed(lambda: run(case.judged.steps(share), 0), options)
        return (seconds, float(quality.hits(evaluator, found.images, found.labels).mean())), found

    run(_one_batch(case.judged.steps(0)), 0)
    whole, found = after(1.0)
    points = [whole]
    for share in SHARES:
        if quality.time_to_quality(points[1:], quality.SHARE * whole[1] if wanted is None else wanted) is None:
            points.append(after(share)[0])
    finals = [found, *(run(case.judged, seed) for seed in range(1, options.seeds))]
    images, labels = (torch.cat([getattr(one, part) for one in finals]) for part in ("images", "labels"))
    return _Course(points, quality.losses(target, images, labels), quality.hits(evaluator, images, labels), labels)
