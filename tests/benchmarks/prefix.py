"""How much faster training is behind a cached prefix, the one part of the benchmark that is no attack."""

import statistics
from typing import Any

import torch

from mi_audit.core.defense import MAIN
from mi_audit.nn.freezing import freeze
from mi_audit.store.targets import new_model
from mi_audit.train.classifier import fit
from mi_audit.train.defended import DefendedObjective
from mi_audit.train.objective import Objective, cross_entropy
from mi_audit.train.recipe import Recipe
from tests.benchmarks import machine, paired
from tests.toy import dataset

SPECS = {"prefix-1": "stage:1", "prefix-3": "stage:3", "prefix-probe": "linear-probe"}


def train(spec: str, cached: bool) -> torch.Tensor:
    """Train a small ResNet-18 whose first layers are frozen on 64 images of 64 pixels, 32 of them to choose the epoch.

    Args:
        spec: What is frozen.
        cached: Whether the frozen layers run once.

    Returns:
        The weights of the last layer.
    """
    data = dataset(per_class=16, size=64)
    net = new_model(
        "built-in:resnet18-small", num_classes=4, channels=3, size=64, mean=(0.5,), std=(0.5,), seed=0
    ).classifier
    freeze(net, spec, data.images(slice(0, 1), "cpu"))
    objective = DefendedObjective({}, {}, {}, MAIN) if cached else Objective(cross_entropy)
    few = data.select(torch.arange(32))
    recipe = Recipe(epochs=2, precision="32")
    done = fit(net, data, few, recipe, seed=0, device="cpu", loss=objective, on_step=lambda *_: None)
    assert ("ran once" in str(done.facts)) == cached
    return net.head.get_parameter("weight").detach()


def row(name: str, options: Any) -> dict[str, Any]:
    """The row of one freeze point: on the CPU, in single precision."""
    spec = SPECS[name]
    found: dict[bool, torch.Tensor] = {}
    runs = {
        "reference": lambda: found.update({False: train(spec, False)}),
        "engine": lambda: found.update({True: train(spec, True)}),
    }
    timing = paired.measure(runs, min(3, options.repetitions), options.clock, options.budget)
    ratio = timing.ratio("reference", "engine")
    return {
        "case": name,
        "title": f"ResNet-18 frozen up to {spec}, features cached",
        **machine.facts("cpu"),
        "precision": "32",
        "clock": options.clock,
        "repetitions": timing.repetitions,
        "load": list(timing.load),
        "ratio": ratio.median,
        "ratio_min": ratio.least,
        "ratio_max": ratio.most,
        "reference_s": statistics.median(timing.seconds["reference"]),
        "engine_s": statistics.median(timing.seconds["engine"]),
        "quality_ok": torch.allclose(found[False], found[True], atol=1e-3),
    }
