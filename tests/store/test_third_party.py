"""Checkpoints that other people published, loaded as a user would."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_audit.audit.identify import identify
from mi_audit.core.dataset import Dataset
from mi_audit.store.targets import load_model

FOLDER = Path(os.environ.get("MI_AUDIT_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not (FOLDER / "weights").is_dir(), reason=f"no checkpoints in {FOLDER}"),
]


@pytest.fixture
def root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def test_lenet_reaches_its_published_accuracy(root):
    weights = FOLDER / "weights" / "mnist-lenet5.safetensors"
    model = load_model(str(weights), arch="py:examples.lenet5:lenet5", size=32)
    with np.load(FOLDER / "mnist.npz") as file:
        pixels, labels = torch.from_numpy(file["x_test"])[:, None], torch.from_numpy(file["y_test"]).long()
    data = Dataset("mnist", pixels, labels, tuple("0123456789"), "test")
    settled, measured = identify(model, data, "cpu")
    assert measured.value == pytest.approx(0.9908, abs=2e-4)
    assert settled.classifier.mean_values == (0.0,) and settled.class_order == "lexical"


def test_squeezenet_in_half_precision_is_recognised_by_its_tensors():
    model = load_model(str(FOLDER / "weights" / "imagenet-squeezenet1_0-fp16.safetensors"))
    assert model.arch == "torchvision:squeezenet1_0" and model.alternatives == ()
    assert model.classifier.num_classes == 1000 and "float16 read as float32" in model.origins["weights"]
    model.classifier.eval()
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert model.target().features(noise).shape[0] == 2
    assert torch.isfinite(model.classifier(noise)).all()


def test_a_residual_network_of_ones_own_layout(root):
    weights = FOLDER / "weights" / "cifar10-resnet20.safetensors"
    model = load_model(str(weights), arch="py:examples.resnet20_cifar:resnet20", size=32)
    assert (model.classifier.num_classes, model.classifier.channels) == (10, 3)
    logits = model.with_input(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).classifier.eval()(
        torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    )
    assert torch.isfinite(logits).all() and logits.std(dim=1).min() > 0.5
