from dataclasses import replace

import pytest
import torch

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import Diverged
from mi_audit.metrics import kes
from mi_audit.metrics.kes import KnowledgeExtraction
from tests.metrics.evidence import evidence, judge

QUICK = KnowledgeExtraction(epochs=12, batch_size=8)


def coloured(per_class, seed=0):
    """Noisy pictures of four colours, which neither shifts nor mirrors change."""
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    noise = torch.rand(4 * per_class, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    images = 0.5 * colours.repeat_interleave(per_class, 0)[:, :, None, None] + 0.4 * noise
    labels = torch.arange(4).repeat_interleave(per_class)
    return Dataset("colours", (255 * images).to(torch.uint8), labels, ("red", "green", "blue", "white"), "colours")


def shown(data: Dataset, labels=None):
    """Evidence whose reconstructions are `data`, halved between two seeds; held out are other pictures."""
    held_out = coloured(4, seed=9)
    labels = data.labels if labels is None else labels
    return replace(
        evidence([0]), pixels=data.pixels, labels=labels, seeds=torch.arange(len(data)) % 2,
        logits=torch.zeros(len(data), 4), features=torch.zeros(len(data), 4),
        private=data, private_features=torch.zeros(len(data), 4),
        held_out=held_out, held_out_features=torch.zeros(16, 4),
    )  # fmt: skip


def measure(found, metric=QUICK):
    (measurement,) = metric.measure(found)
    return measurement


def test_a_student_learns_from_pictures_that_show_their_class():
    found = measure(shown(coloured(12)))
    assert found.value > 0.9
    assert (found.name, found.count, found.counted) == ("kes", 32, "answers to held-out images")
    assert found.interval is not None and found.interval.method.endswith("4 identities")
    assert [(row.label, row.seed, row.count) for row in found.per_class][:3] == [(0, 0, 4), (0, 1, 4), (1, 0, 4)]
    assert found.protocol == "kes/identity/all/none@built-in:cnn#student-e12-b8-lr0.02-test"


def test_a_student_learns_nothing_from_pictures_of_other_classes():
    data = coloured(12)
    assert measure(shown(data, (data.labels + 1) % 4)).value < 0.1


def test_is_measured_only_when_named():
    assert KnowledgeExtraction.default is False


@pytest.mark.parametrize(
    ("arch", "student", "chosen"),
    [
        ("timm:resnet10t", "auto", "timm:resnet10t"),
        ("py:mine:net", "auto", "built-in:cnn"),
        ("timm:resnet10t", "built-in:cnn-wide", "built-in:cnn-wide"),
    ],
)
def test_the_student_is_of_the_evaluators_architecture(arch, student, chosen):
    found = evidence([0], judge=replace(judge(), arch=arch))
    assert f"@{chosen}#" in measure(found, KnowledgeExtraction(student=student)).protocol


def test_without_held_out_images_or_reconstructions_there_is_a_reason():
    assert measure(evidence([0, 1])).reason == "no held-out private images to examine the student on"
    nothing = shown(coloured(1).select(torch.zeros(0, dtype=torch.int64)))
    assert measure(nothing).reason == "no reconstruction to learn from"


def test_a_student_that_diverges_has_a_reason(monkeypatch):
    def diverges(*_args, **_settings):
        raise Diverged("loss is NaN")

    monkeypatch.setattr(kes, "fit", diverges)
    found = measure(shown(coloured(2)))
    assert (found.value, found.reason) == (None, "the student of seed 0 diverged: loss is NaN")
