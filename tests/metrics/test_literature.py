import pytest
import torch

from mi_audit.metrics import literature
from mi_audit.metrics.literature import Literature
from tests.metrics.evidence import evidence, ranked


def measure(found):
    return Literature().measure(found)


def on_a_line(*places):
    return torch.tensor(places)[:, None]


def test_variance_of_seeds_as_kedmi_prints_it(monkeypatch):
    # seeds 0 and 1 reach 1.0 and 0.5 on classes 0 and 1 (variance 1/8), 0 and 1 on class 2 (variance 1/2)
    monkeypatch.setattr(literature, "BATCH", 2)
    labels, ranks = [0, 1, 0, 1, 2, 2], [0, 0, 0, 3, 1, 0]
    logits = torch.stack([ranked(label, rank) for label, rank in zip(labels, ranks, strict=True)])
    variance, _ = measure(evidence(labels, logits=logits, seeds=torch.tensor([0, 0, 1, 1, 0, 1])))
    assert variance.value == pytest.approx((1 / 8 + 1 / 2) / 2)
    assert variance.protocol == "attack_acc1_variance_kedmi/image/all/none@toy-00000000#kedmi-2021-b2"


def test_one_seed_has_no_variance():
    variance, _ = measure(evidence([0, 1]))
    assert (variance.value, variance.reason) == (None, "two seeds are needed")


def test_only_the_ball_of_the_nearest_private_image_counts():
    # third neighbours of 0, 1, 2, 3, 100 are at 3, 2, 2, 3 and 99: 4 and 8 are nearest to 3, 4 inside its ball;
    # the ball of 100 holds 8, but does not count
    owner = evidence([0]).private.select(torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2]))
    private = on_a_line(0.0, 1.0, 2.0, 3.0, 100.0, 0.0, 1.0, 2.0, 3.0, 0.0)
    case = evidence([0, 0, 1, 2], features=on_a_line(4.0, 8.0, 0.5, 0.0), private=owner, private_features=private)
    _, precision = measure(case)
    assert precision.value == pytest.approx((1 / 2 + 1) / 2)  # class 2 has one private image and is left out
    assert precision.protocol == "precision_nearest_k3/image/all/none@toy-00000000#ppa-2022-d1"


def test_a_point_on_the_edge_is_outside():
    owner = evidence([0]).private.select(torch.tensor([0, 0, 0, 0]))
    case = evidence(
        [0, 0], features=on_a_line(-3.0, -2.5), private=owner, private_features=on_a_line(0.0, 1.0, 2.0, 3.0)
    )
    assert measure(case)[1].value == pytest.approx(1 / 2)


def test_what_cannot_be_measured_has_a_reason():
    assert measure(evidence([0, 1]))[1].reason == "no attacked class has 4 private images"
    broken = evidence([0, 1], features=torch.full((2, 8), torch.nan))
    assert (measure(broken)[1].value, measure(broken)[1].reason) == (None, "a feature is not finite")


def test_no_gate_uses_them_and_they_run_only_when_named():
    assert Literature.default is False
    for one in measure(evidence([0, 0], seeds=torch.tensor([0, 1]))):
        assert one.leak_grows is None and one.interval is None and one.reason is not None
