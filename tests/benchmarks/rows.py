"""Runs a case: times reference and engine side by side, compares what they found, and makes a row per precision."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from mi_audit.core.run import Run
from tests.benchmarks import machine, paired
from tests.benchmarks.cases import Case, Engine, Precision, Reference, Size, iterations
from tests.benchmarks.compared import Row, compared
from tests.benchmarks.options import Options, timed
from tests.benchmarks.paired import Timing
from tests.benchmarks.steady import every_step_mixed, instead, uncompared, with_polish
from tests.benchmarks.worlds import Built, build_world

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}


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
    same = compared(case, options)
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
    tops = {one: machine.ceiling(options.device, DTYPES[one], options.now) for one in {"32", *used.values()}}
    top_reference, found = tops["32"], {}
    for precision, engine in engines.items():
        top = tops[used[precision]]
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
    most = 2 if "pool" in size.settings else 3  # images of StyleGAN2 take long, two of others can have another peak
    return (of(most) - of(1)) / (most - 1)


def _scaling(case: Case, engine: Engine, options: Options) -> dict[str, float]:
    """Image-iterations per second when there are so many times more restarts."""
    found = {}
    for times in case.scaled:
        more = {name: times * case.timed.settings[name] for name in ("restarts", "pool") if name in case.timed.settings}
        base = case.timed if "pool" in more else case.timed.distinct()
        size = replace(base, settings=base.settings | more)
        with every_step_mixed():
            seconds = min(timed(lambda size=size: engine.run(size), options)[0] for _ in range(2))
        found[str(size.classes * size.settings["restarts"])] = iterations(size) / seconds
    return found
