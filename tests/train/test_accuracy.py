from dataclasses import replace

import pytest
import torch

from mi_audit.nn.classifier import Classifier
from mi_audit.nn.output_rules import OutputNoise, TopK
from mi_audit.store.targets import LoadedModel
from mi_audit.train.accuracy import accuracy, measured_accuracy
from tests import toy

NOISE = OutputNoise(deviation=10.0).edit()


def loaded(*edits) -> LoadedModel:
    classifier = Classifier(toy.classifier(), size=8, channels=3, mean=(0.0,), std=(1.0,))
    return LoadedModel(classifier, "toy.safetensors", "py:toy:classifier", "0" * 64, edits=edits)


def test_what_the_output_rule_releases_is_counted():
    model, data = loaded(NOISE), toy.dataset()
    assert accuracy(model.classifier, data, "cpu").value == 1.0
    measured = measured_accuracy(model, data, "cpu", batch_size=5)
    hits = int((model.target().labels(data.images()) == data.labels).sum())
    assert measured.value == hits / len(data) < 0.7 and measured.count == len(data)
    assert measured.interval.low < measured.value < measured.interval.high


def test_without_an_output_rule_it_is_the_accuracy_of_the_network():
    model, data = loaded({"edit": "group-norm", "modules": []}), toy.dataset()
    assert measured_accuracy(model, data, "cpu") == accuracy(model.classifier, data, "cpu")
    assert measured_accuracy(loaded(TopK(k=1).edit()), data, "cpu") == accuracy(model.classifier, data, "cpu")
    empty = replace(data, pixels=data.pixels[:0], labels=data.labels[:0])
    assert measured_accuracy(loaded(NOISE), empty, "cpu") == accuracy(model.classifier, empty, "cpu")


def test_measuring_leaves_the_model_as_it_was():
    model = loaded(NOISE)
    model.classifier.train()
    frozen = next(model.classifier.parameters()).requires_grad_(False)
    measured_accuracy(model, toy.dataset(), "cpu")
    assert all(module.training for module in model.classifier.modules())
    assert [one.requires_grad for one in model.classifier.parameters()] == [False, True] and not frozen.requires_grad
    assert torch.is_grad_enabled()


def test_a_measurement_that_fails_leaves_the_model_as_it_was(monkeypatch):
    def broken(*_):
        raise MemoryError

    model = loaded(NOISE)
    model.classifier.train()
    monkeypatch.setattr(type(model.target()), "labels", broken)
    model.classifier.train().requires_grad_(True)
    with pytest.raises(MemoryError):
        measured_accuracy(model, toy.dataset(), "cpu")
    assert all(module.training for module in model.classifier.modules())
    assert all(one.requires_grad for one in model.classifier.parameters())
