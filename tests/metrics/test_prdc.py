import numpy as np
import pytest
import torch
from prdc import compute_prdc

from mi_audit.metrics import prdc
from mi_audit.metrics.prdc import PRDC, prdc_scores
from tests.metrics.evidence import evidence


def random(rows, width, seed, shift=0.0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) + shift


def reference(real, fake, k):
    """The definition, one loop per ball."""

    def radius(rows, place):
        return np.sort(np.linalg.norm(rows - rows[place], axis=1))[k]

    real_balls, fake_balls = ([radius(rows, i) for i in range(len(rows))] for rows in (real, fake))
    inside = np.array([[np.linalg.norm(f - r) < ball for r, ball in zip(real, real_balls, strict=True)] for f in fake])
    recalled = [any(np.linalg.norm(r - f) < ball for f, ball in zip(fake, fake_balls, strict=True)) for r in real]
    return (inside.any(axis=1).mean(), np.mean(recalled), inside.sum(axis=1).mean() / k, inside.any(axis=0).mean())


def on_a_line(*places):
    return torch.tensor(places)[:, None]


def test_points_on_a_line_solved_by_hand():
    # k = 1: the private balls are (-1, 1), (0, 2) and (1, 19); those of the reconstructions (0, 1), (0.5, 1.5), (1, 59)
    found = prdc_scores(on_a_line(0.0, 1.0, 10.0), on_a_line(0.5, 1.0, 30.0), k=1)
    assert found.precision == pytest.approx(2 / 3)  # 30 is in none
    assert found.density == pytest.approx((2 + 1) / 3)  # 1 lies at the ends of two balls, which is not inside
    assert found.recall == pytest.approx(2 / 3)  # 0 lies at the end of one
    assert found.coverage == pytest.approx(2 / 3)  # 10 is 9 away from the nearest reconstruction


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_agrees_with_the_definition_across_chunks(shift, monkeypatch):
    monkeypatch.setattr(prdc, "CHUNK", 7)
    real, fake = random(30, 4, 0), random(23, 4, 1, shift)
    assert tuple(prdc_scores(real, fake, 3)) == pytest.approx(
        reference(real.double().numpy(), fake.double().numpy(), 3)
    )


@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize(("private", "found", "width"), [(80, 60, 16), (12, 90, 3), (150, 40, 64)])
def test_agrees_with_the_reference_implementation_of_the_paper(private, found, width, k):
    real, fake = random(private, width, 2), 0.8 * random(found, width, 3, 0.3)
    expected = compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=k)
    assert prdc_scores(real, fake, k)._asdict() == pytest.approx(expected)


def test_pools_the_classes_and_names_all_four():
    features, private = random(50, 8, 0), random(60, 8, 1)
    owner = evidence([0]).private.select(torch.arange(60) % 8)
    found = PRDC().measure(
        evidence([i % 5 for i in range(50)], features=features, private=owner, private_features=private)
    )
    assert [one.name for one in found] == ["precision_k3", "recall_k3", "density_k3", "coverage_k3"]
    assert [one.value for one in found] == pytest.approx(list(prdc_scores(private, features, 3)))
    assert {one.reason for one in found} == {
        "no interval (a comparison of sets): 50 reconstructions, 60 private images, d = 8 features"
    }
    assert found[0].protocol == "precision_k3/set/all/none@toy-00000000#union-train-pooled-d8-raw"
    assert {one.leak_grows for one in found} == {None}


def test_is_not_measured_on_few_images():
    found = PRDC().measure(evidence([0] * 49, private_features=random(50, 8, 0)))
    assert [one.value for one in found] == [None] * 4
    assert found[0].reason == "50 images are needed on each side, got 49 reconstructions, 50 private images"


def test_a_feature_that_is_not_finite_is_no_score():
    found = PRDC().measure(
        evidence([0] * 50, features=torch.full((50, 8), torch.nan), private_features=random(50, 8, 0))
    )
    assert (found[0].value, found[0].reason) == (None, "a feature is not finite")
