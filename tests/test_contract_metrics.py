"""What every metric promises, checked on every metric the registry finds."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from mi_audit.audit import registry
from tests.metrics.evidence import evidence

every_metric = pytest.mark.parametrize("metric", registry.metrics().values(), ids=lambda metric: metric.__name__)


def found():
    generator = torch.Generator().manual_seed(0)
    labels = [0, 0, 1, 1, 2, 2]
    return evidence(
        labels,
        seeds=torch.tensor([0, 1, 0, 1, 0, 1]),
        logits=torch.randn(6, 8, generator=generator),
        features=torch.randn(6, 8, generator=generator),
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
        assert one.count == 6 and one.unit == metric.unit


@every_metric
def test_the_protocol_names_the_judge(metric):
    for one in metric().measure(found()):
        name, unit, subset, rest = one.protocol.split("/")
        assert name and unit in ("image", "identity", "set") and subset == "all"
        assert rest.split("#")[0] == "none@toy-00000000"


@every_metric
def test_measures_the_same_twice_and_in_any_order(metric):
    whole = found()
    turned = torch.arange(5, -1, -1)
    backwards = replace(
        whole, labels=whole.labels[turned], seeds=whole.seeds[turned], pixels=whole.pixels[turned],
        logits=whole.logits[turned], features=whole.features[turned],
    )  # fmt: skip
    first, again, other = (metric().measure(case) for case in (whole, found(), backwards))
    assert first == again
    assert [one.value for one in other] == pytest.approx([one.value for one in first], rel=1e-6)


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
