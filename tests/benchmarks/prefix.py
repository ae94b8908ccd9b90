"""How much faster a training is whose frozen layers run once: python -m tests.benchmarks.prefix"""

import time

import torch

from mi_audit.core.defense import MAIN
from mi_audit.nn.freezing import freeze
from mi_audit.store.targets import new_model
from mi_audit.train.classifier import fit
from mi_audit.train.defended import DefendedObjective
from mi_audit.train.objective import Objective, cross_entropy
from mi_audit.train.recipe import Recipe
from tests.toy import dataset

EPOCHS = 6


def seconds(spec: str, objective: Objective) -> float:
    """Of a whole training of the small ResNet-18 on 128 images of 64 pixels, with 32 to choose the epoch by."""
    data = dataset(per_class=32, size=64)
    net = new_model(
        "built-in:resnet18-small", num_classes=4, channels=3, size=64, mean=(0.5,), std=(0.5,), seed=0
    ).classifier
    freeze(net, spec, data.images(slice(0, 1), "cpu"))
    recipe = Recipe(epochs=EPOCHS, precision="32")
    start = time.process_time()
    done = fit(
        net, data, data.select(torch.arange(32)), recipe, seed=0, device="cpu", loss=objective, on_step=lambda *_: None
    )
    assert ("ran once" in str(done.facts)) == isinstance(objective, DefendedObjective)
    return time.process_time() - start


if __name__ == "__main__":
    print(f"{EPOCHS} epochs, {torch.get_num_threads()} threads")  # noqa: T201
    for spec in ("stage:1", "stage:3", "linear-probe"):
        plain, kept = seconds(spec, Objective(cross_entropy)), seconds(spec, DefendedObjective({}, {}, {}, MAIN))
        print(f"{spec}: {plain:.1f} s, kept {kept:.1f} s, ratio {plain / kept:.1f}")  # noqa: T201
