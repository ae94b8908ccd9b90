"""How much faster training is behind a cached prefix: python -m tests.benchmarks.prefix"""

import time

import torch
import torchvision
from torch.nn import functional as F

from mi_audit.nn.freezing import freeze, train_mode
from mi_audit.train.prefix import frozen_prefix
from tests.toy import dataset


def seconds(spec: str, cached: bool, epochs: int = 3) -> float:
    torch.manual_seed(0)
    data = dataset(per_class=64, size=32)
    net = torchvision.models.resnet18(num_classes=4)
    freeze(net, spec, data.images(slice(0, 1), "cpu"))
    start = time.perf_counter()
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
    return time.perf_counter() - start


if __name__ == "__main__":
    for spec in ("stage:1", "stage:2", "stage:3"):
        plain, cached = seconds(spec, False), seconds(spec, True)
        print(f"{spec}: {plain:.2f} s, cached {cached:.2f} s, ratio {plain / cached:.2f}")  # noqa: T201
