"""Runs a case: times reference and engine side by side, compares what they found, and makes a row per precision."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_audit.core.early_stop import EarlyStop
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from tests.benchmarks import machine, paired, quality
from tests.benchmarks.cases import Case, Engine, Precision, Reference, Size, iterations
from tests.benchmarks.paired import Clock, Timing
from tests.benchmarks.quality import Quality
from tests.benchmarks.reference import Found, counted
from tests.benchmarks.steady import every_step_mixed, instead, uncompared, with_polish
from tests.benchmarks.worlds import Built, build_world

Row = dict[str, Any]
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}
SHARES = (0.25, 0.5, 1.0)  # of the steps, after which the attack rate is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure.

    Attributes:
        device, precisions, clock: Where, in what, on which seconds.
        repetitions: Of the paired timing; fewer when `budget` seconds are over, but three at least.
        seeds: Over which losses and rates are compared.
        cache: Of trained networks; None is the user's.
        say: Receives a line per stage.
    """

    device: str
    precisions: tuple[Precision, ...]
    clock: Clock
    repetitions: int
    budget: float
    seeds: int
    cache: Path | None
    say: Callable[[str], None]

    def now(self) -> float:
        return time.process_time() if self.clock == "cpu" else time.perf_counter()


def rows_of(name: str, case: Case, options: Options) -> list[Row]:
    """One row per precision."""
    built = build_world(case.timed.world, options.cache, options.say)
    reference = Reference(case, built, options.device)
    precisions: tuple[Precision, ...] = ("32", *(["bf16"] if "bf16" in options.precisions else []))
    engines = {precision: Engine(case, built, options.device, precision) for precision in precisions}
    options.say(f"{name}: timing")
    runs: dict[str, Callable[[], object]] = {"reference": lambda: reference.run(case.timed)}
    runs |= {precision: lambda engine=engine: engine.run(case.timed) for precision, engine in engines.items()}
    with every_step_mixed():
        timing = paired.measure(runs, options.repetitions, options.clock, options.budget)
    gate = {precision: _gate(case, engines[precision]) for precision in precisions}
    if "bf16" in precisions:
        refused = gate["bf16"]["used"] == "32"
        timing = instead(timing, "32", "bf16") if refused else with_polish(timing, "32", "bf16")
    shared = {
        "case": name,
        "title": case.title,
        **machine.facts(options.device),
        "clock": options.clock,
        "repetitions": timing.repetitions,
        "load": list(timing.load),
        "batch": case.timed.batch,
        "images": case.timed.classes * case.timed.settings.get("restarts", 1),
        "iterations": iterations(case.timed),
        "settings": dict(case.timed.settings),
        "first_call_s": dict(timing.first),
        "seconds": {who: list(seconds) for who, seconds in timing.seconds.items()},
        "goals": list(case.goals),
    }
    options.say(f"{name}: operations and memory")
    engines = {precision: engines[precision] for precision in options.precisions}
    used: dict[Precision, Precision] = {precision: gate[precision]["used"] for precision in options.precisions}
    speed = _speed(case, built, reference, engines, used, timing, options)
    options.say(f"{name}: comparing results")
    same = _compared(case, options)
    return [
        shared | {"gate": gate[precision]} | _ratio(timing, precision) | speed[precision] | same[precision]
        for precision in options.precisions
    ]


def _gate(case: Case, engine: Engine) -> Row:
    """What the searches on the networks that are timed compute in when nobody overrules them, and why.

    Networks with random weights are timed in what is asked for: the gate is there for trained ones.
    """
    if not case.timed.world.images or engine.precision == "32":
        return {"used": engine.precision, "reason": ""}
    run = Run(batch_size=engine.batch)
    engine.run(case.timed.steps(0), run=run)
    reasons = [decision.reason for decision in run.decisions if decision.used != decision.asked]
    return {"used": "32" if reasons else engine.precision, "reason": "; ".join(reasons)}


def _ratio(timing: Timing, precision: Precision) -> Row:
    ratio = timing.ratio("reference", precision)
    return {
        "precision": precision,
        "ratio": ratio.median,
        "ratio_min": ratio.least,
        "ratio_max": ratio.most,
        "engine_s": statistics.median(timing.seconds[precision]),
        "reference_s": statistics.median(timing.seconds["reference"]),
    }


def _speed(
    case: Case,
    built: Built,
    reference: Reference,
    engines: Mapping[Precision, Engine],
    used: Mapping[Precision, Precision],
    timing: Timing,
    options: Options,
) -> dict[Precision, Row]:
    """Throughput, share of the ceiling, memory per image, and whether time per image depends on their number.

    The ceiling is that of the arithmetic `used`, which the seconds of `timing` are of, whatever was asked for.
    """
    count, forward = iterations(case.timed), _operations(case, reference, built)
    slow = statistics.median(timing.seconds["reference"])
    plain = _memory(lambda size: reference.run(size), case.timed, options.device)
    first = next(iter(engines.values()))
    run = Run(batch_size=first.batch)
    with uncompared():
        first.run(case.timed, run=run)  # passes, of which every precision has as many
    needed = machine.useful_operations(run.work, forward)
    found = {}
    for precision, engine in engines.items():
        top = machine.ceiling(options.device, DTYPES[used[precision]], options.now)
        top_reference = machine.ceiling(options.device, torch.float32, options.now)
        seconds = statistics.median(timing.seconds[precision])
        found[precision] = {
            "image_iterations_per_s": count / seconds,
            "reference_image_iterations_per_s": count / slow,
            "gigaflop_per_image_iteration": needed / count / 1e9,
            "ceiling_gflops": top / 1e9,
            "mfu": needed / seconds / top if case.whole else None,
            "reference_mfu": needed / slow / top_reference if case.whole else None,
            "memory_per_image": _memory(lambda size, engine=engine: engine.run(size), case.timed, options.device),
            "reference_memory_per_image": plain,
            "scaling": _scaling(case, engine, options),
        }
    return found


def _operations(case: Case, reference: Reference, built: Built) -> dict[str, float]:
    """Of one image through each network of the case."""
    nets, two = reference.networks, torch.zeros(2, dtype=torch.long, device=reference.device)
    z = torch.randn(2, built.width, device=reference.device)
    images = torch.rand(2, 3, built.world.size, built.world.size, device=reference.device)
    latents = (z, two) if built.world.prior == "conditional" else (z,)
    forward = machine.forward_operations({"generator": (nets.generator, latents), "target": (nets.target, (images,))})
    if nets.critic is not None:
        forward |= machine.forward_operations({"critic": (nets.critic, (images,))})
    if nets.students:
        each = machine.forward_operations({str(k): (one, (images,)) for k, one in enumerate(nets.students)})
        forward["student"] = sum(each.values()) / len(each)
    return forward


def _memory(run: Callable[[Size], object], size: Size, device: str) -> float:
    """Bytes that one more image needs at the peak of a step; the weights cancel."""

    def of(images: int) -> int:
        fewer = size.steps(0)
        if "pool" in size.settings:  # these go through one class after the other
            few = replace(
                fewer, classes=1, batch=images, settings=fewer.settings | {"restarts": images, "pool": images}
            )
        else:
            few = replace(fewer, classes=images, batch=images, settings=fewer.settings | fewer.single)
        with uncompared():
            return machine.peak(lambda: run(few), device)

    of(1)  # for what is made once and kept
    return (of(3) - of(1)) / 2


def _scaling(case: Case, engine: Engine, options: Options) -> dict[str, float]:
    """Image-iterations per second when there are so many times more restarts."""
    found = {}
    for times in case.scaled:
        more = {name: times * case.timed.settings[name] for name in ("restarts", "pool") if name in case.timed.settings}
        base = case.timed if "pool" in more else case.timed.distinct()
        size = replace(base, settings=base.settings | more)
        with every_step_mixed():
            seconds = min(_timed(lambda size=size: engine.run(size), options)[0] for _ in range(2))
        found[str(size.classes * size.settings["restarts"])] = iterations(size) / seconds
    return found


def _timed(work: Callable[[], Any], options: Options) -> tuple[float, Any]:
    paired.finish()
    start = options.now()
    result = work()
    paired.finish()
    return options.now() - start, result


@dataclass(frozen=True, slots=True)
class _Course:
    """What a candidate came to: seconds and rate after shares of the steps, and the final rows of all seeds."""

    points: list[tuple[float, float]]
    losses: Tensor
    hits: Tensor
    labels: Tensor


def _compared(case: Case, options: Options) -> dict[Precision, Row]:
    """The quality line of every precision, and the time to a share of the reference's final rate."""
    built = build_world(case.judged.world, options.cache, options.say)
    reference = Reference(case, built, options.device)
    near = case.timed if case.timed.world.images else case.judged  # first steps are compared on trained networks
    first = build_world(near.world, options.cache, options.say)
    beside = Reference(case, first, options.device)
    plain = _course(case, built, options, lambda size, seed: reference.run(size, seed=seed))
    wanted = quality.SHARE * plain.points[-1][1]
    slow = quality.time_to_quality(plain.points, wanted)
    work, stop = counted(beside.networks)
    once = _one_batch(near.steps(0)) if "pool" in near.settings else near.distinct().steps(0)
    found = beside.run(once)
    stop()
    result = {}
    for precision in options.precisions:
        engine = Engine(case, built, options.device, precision)
        course = _course(case, built, options, lambda size, seed, engine=engine: engine.run(size, seed=seed))
        start = Engine(case, first, options.device, precision)
        line = _quality(start, once, found, work, course, plain, exact=precision == "32")
        early = _early(case, built, engine, options)
        fast = quality.time_to_quality([*course.points, (early["seconds"], early["rate"])], wanted)
        result[precision] = line.as_columns() | {
            "accuracy": list(built.accuracy or ()),
            "rate_wanted": wanted,
            "early_stop": early | {"seconds_without": course.points[-1][0], "rate_without": course.points[-1][1]},
            "time_to_quality_s": fast,
            "reference_time_to_quality_s": slow,
            "time_to_quality_ratio": slow / fast if slow and fast and wanted > 0 else None,
        }
    return result


def _early(case: Case, built: Built, engine: Engine, options: Options) -> dict[str, float]:
    """What leaving the batch when a loss stands still comes to: seconds, rate, and the share of the steps taken."""
    run = Run(batch_size=engine.batch, early_stop=EarlyStop())
    seconds, found = _timed(lambda: engine.run(case.judged, run=run), options)
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


def _course(case: Case, built: Built, options: Options, run: Callable[[Size, int], Found | Reconstructions]) -> _Course:
    """Run shares of the steps, and all of them with every seed."""
    target, evaluator = (net.to(options.device).eval() for net in (built.target, built.evaluator))
    run(_one_batch(case.judged.steps(0)), 0)
    points = []
    for share in SHARES:
        seconds, found = _timed(lambda share=share: run(case.judged.steps(share), 0), options)
        points.append((seconds, float(quality.hits(evaluator, found.images, found.labels).mean())))
    finals = [found, *(run(case.judged, seed) for seed in range(1, options.seeds))]
    images, labels = (torch.cat([getattr(one, part) for one in finals]) for part in ("images", "labels"))
    return _Course(points, quality.losses(target, images, labels), quality.hits(evaluator, images, labels), labels)
