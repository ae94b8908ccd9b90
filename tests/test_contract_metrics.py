"""What every metric promises, checked on every metric the registry finds."""

import functools
import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from mi_audit.audit import registry
from mi_audit.core.dataset import Dataset
from tests.metrics.evidence import CLASSES, evidence

COUNT = 54
every_metric = pytest.mark.parametrize("metric", registry.metrics().values(), ids=lambda metric: metric.__name__)


def pictures(count, generator):
    """Noise of the first three classes in turn."""
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Dataset("private", pixels, torch.arange(count) % 3, CLASSES, "private")


def found():
    """Nine reconstructions of each of three classes under each of two seeds."""
    generator = torch.Generator().manual_seed(0)
    shown, private, held_out = (pictures(count, generator) for count in (COUNT, 51, 9))
    draw = functools.partial(torch.randn, generator=generator)
    return evidence(
        shown.labels.tolist(),
        pixels=shown.pixels,
        seeds=torch.arange(COUNT) // 27,
        logits=draw(COUNT, 8),
        features=draw(COUNT, 8),
        private=private,
        private_features=draw(51, 8),
        held_out=held_out,
        held_out_features=draw(9, 8),
    )


@every_metric
def test_names_its_measurements_and_says_what_they_are(metric):
    assert metric.summary and metric.unit
    assert tuple(one.name for one in metric().measure(found())) == metric.names


@every_metric
def test_every_number_has_an_interval_or_a_reason(metric):
    for one in metric().measure(found()):
        assert one.value is None or math.isfinite(one.value)
        assert (one.interval is None) == (one.reason is not None)
        if one.interval is not None:
            assert one.interval.low <= one.value <= one.interval.high
        assert one.unit == metric.unit and one.counted
        assert one.count == COUNT or one.counted != "images"


@every_metric
def test_the_protocol_names_the_judge(metric):
    for one in metric().measure(found()):
        name, unit, subset, rest = one.protocol.split("/")
        selector, _, judge = rest.split("#")[0].partition("@")
        assert name and unit in ("image", "identity", "set")
        assert (subset, selector) in (("all", "none"), ("sel1", "target-conf"))
        assert judge in ("toy-00000000", "pixels", "built-in:cnn") or one.value is None


@every_metric
def test_measures_the_same_twice_and_in_any_order(metric):
    whole = found()
    turned = torch.arange(COUNT - 1, -1, -1)
    backwards = replace(
        whole, labels=whole.labels[turned], seeds=whole.seeds[turned], pixels=whole.pixels[turned],
        logits=whole.logits[turned], features=whole.features[turned],
    )  # fmt: skip
    first, again, other = (metric().measure(case) for case in (whole, found(), backwards))
    assert first == again
    for one, same in zip(first, other, strict=True):
        assert same.value == (one.value if one.value is None else pytest.approx(one.value, rel=1e-6))


@every_metric
def test_leaves_the_evidence_and_the_global_generator_alone(metric):
    case, state = found(), torch.get_rng_state()
    before = [
        tensor.clone() for tensor in (case.pixels, case.labels, case.logits, case.features, case.private_features)
    ]
    metric().measure(case)
    after = (case.pixels, case.labels, case.logits, case.features, case.private_features)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@every_metric
def test_is_plain_data(metric):
    json.dumps([asdict(one) for one in metric().measure(found())], allow_nan=False)
