"""How much faster training is behind a cached prefix, the one part of the benchmark that is no attack."""

import copy
import statistics
from typing import Any

import torch
from torch import nn

from mi_audit.core.dataset import Dataset
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


def student(spec: str) -> tuple[nn.Module, Dataset]:
    """A small ResNet-18 whose first layers are frozen, and 32 images of 64 pixels."""
    data = dataset(per_class=8, size=64)
    net = new_model(
        "built-in:resnet18-small", num_classes=4, channels=3, size=64, mean=(0.5,), std=(0.5,), seed=0
    ).classifier
    freeze(net, spec, data.images(slice(0, 1), "cpu"))
    return net, data


def train(net: nn.Module, data: Dataset, cached: bool) -> torch.Tensor:
    """Train a copy of `net` for five epochs, chosen on eight of the images.

    Args:
        cached: Whether the frozen layers run once.

    Returns:
        The weights of the last layer.
    """
    net = copy.deepcopy(net)
    objective = DefendedObjective({}, {}, {}, MAIN) if cached else Objective(cross_entropy)
    few, recipe = data.select(torch.arange(0, 32, 4)), Recipe(epochs=5, precision="32")
    done = fit(net, data, few, recipe, seed=0, device="cpu", loss=objective, on_step=lambda *_: None)
    assert ("ran once" in str(done.facts)) == cached
    return net.head.get_parameter("weight").detach()


def row(name: str, options: Any) -> dict[str, Any]:
    """The row of one freeze point: on the CPU, in single precision."""
    spec = SPECS[name]
    net, data = student(spec)
    found: dict[bool, torch.Tensor] = {}
    runs = {
        "reference": lambda: found.update({False: train(net, data, False)}),
        "engine": lambda: found.update({True: train(net, data, True)}),
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
