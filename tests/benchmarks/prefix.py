"""How much faster training is behind a cached prefix, the one part of the benchmark that is no attack."""

import statistics
from typing import Any

import torch
import torchvision
from torch.nn import functional as F

from mi_audit.nn.freezing import freeze, train_mode
from mi_audit.train.prefix import frozen_prefix
from tests.benchmarks import machine, paired
from tests.toy import dataset

SPECS = {"prefix-1": "stage:1", "prefix-2": "stage:2", "prefix-3": "stage:3"}


def train(spec: str, cached: bool, epochs: int = 3) -> torch.Tensor:
    """Train a ResNet-18 whose first layers are frozen, with or without their features kept; returns its last layer."""
    torch.manual_seed(0)
    data = dataset(per_class=64, size=32)
    net = torchvision.models.resnet18(num_classes=4)
    freeze(net, spec, data.images(slice(0, 1), "cpu"))
    prefix = frozen_prefix(net, data, device="cpu")[0] if cached else None
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.01)
    for _ in range(epochs):
        train_mode(net)
        for rows in torch.randperm(len(data)).split(64):
            images = data.pixels[rows].float() / 255
            logits = prefix.logits(images, rows) if prefix else net(images)
            optimiser.zero_grad()
            F.cross_entropy(logits, data.labels[rows]).backward()
            optimiser.step()
    return net.fc.weight.detach()


def row(name: str, options: Any) -> dict[str, Any]:
    """The row of one freeze point: on the CPU, in single precision."""
    spec = SPECS[name]
    runs = {"reference": lambda: train(spec, False), "engine": lambda: train(spec, True)}
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
        "quality_ok": torch.allclose(train(spec, False), train(spec, True), atol=1e-3),
    }
