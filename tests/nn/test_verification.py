import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.nn.verification import (
    first_of_class,
    similarity_to_class,
    strangers,
    threshold_for,
    within_class_whitening,
)

AXES = torch.eye(3)


def test_only_references_of_the_claimed_class_count():
    references, owners = AXES, torch.tensor([0, 1, 1])
    found = similarity_to_class(AXES[[0, 0, 2]], torch.tensor([0, 1, 1]), references, owners)
    assert found.tolist() == [1.0, 0.0, 1.0]


def test_the_nearest_reference_decides():
    references = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    found = similarity_to_class(torch.tensor([[0.0, 1.0]]), torch.tensor([5]), references, torch.tensor([5, 5]))
    assert found.tolist() == pytest.approx([0.8])


def test_a_class_without_references_matches_nothing():
    found = similarity_to_class(AXES[:2], torch.tensor([0, 7]), AXES[:1], torch.tensor([0]))
    assert found.tolist() == [1.0, -torch.inf]
    assert similarity_to_class(AXES[:1], torch.tensor([0]), AXES[:0], torch.tensor([], dtype=torch.int64)).isinf().all()


def test_rows_do_not_depend_on_the_chunks_they_are_compared_in():
    generator = torch.Generator().manual_seed(0)
    rows, references = torch.randn(600, 4, generator=generator), torch.randn(9, 4, generator=generator)
    labels, owners = torch.arange(600) % 3, torch.arange(9) % 3
    whole = similarity_to_class(rows, labels, references, owners)
    single = torch.cat([similarity_to_class(rows[i : i + 1], labels[i : i + 1], references, owners) for i in (0, 599)])
    assert torch.allclose(whole[[0, 599]], single)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.sets(st.integers(0, 6), min_size=1))
def test_nobody_is_claimed_to_be_who_they_are(labels, classes):
    known = torch.tensor(sorted(classes))
    claims, possible = strangers(torch.tensor(labels), known, torch.Generator().manual_seed(1))
    assert all(int(c) in classes for c in claims)
    assert all(int(c) != label for c, label, ok in zip(claims, labels, possible, strict=True) if ok)
    assert possible.tolist() == [classes != {label} for label in labels]


def test_claims_are_spread_over_all_other_classes():
    claims, _ = strangers(torch.full((300,), 2), torch.tensor([1, 2, 5, 9]), torch.Generator().manual_seed(0))
    assert claims.unique().tolist() == [1, 5, 9]
    assert claims.bincount().max() < 140


@pytest.mark.parametrize(("n", "accepted"), [(298, 0), (299, 0), (472, 0), (473, 1), (627, 1), (628, 2), (50, 0)])
def test_the_threshold_lets_as_many_through_as_the_exact_bound_allows(n, accepted):
    scores = torch.arange(n).float()[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    assert int((scores > threshold_for(scores, 0.01)).sum()) == accepted


def test_equal_scores_at_the_threshold_are_refused():
    assert int((torch.ones(700) > threshold_for(torch.ones(700), 0.01)).sum()) == 0


def test_the_first_of_every_class_are_taken_in_row_order():
    labels = torch.tensor([2, 0, 2, 1, 2, 0])
    assert first_of_class(labels, torch.tensor([1, 5, 2])).tolist() == [0, 1, 2, 3]
    assert first_of_class(labels, torch.tensor([0, 0, 0])).tolist() == []


def test_whitening_makes_the_pictures_of_a_class_vary_alike_in_all_directions():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = torch.randn(300, 2, generator=generator) @ torch.tensor([[1.5, 0.5], [0.0, 1.0]]) + 5.0 * labels[:, None]
    mean, matrix = within_class_whitening(features, labels)
    assert torch.allclose(mean, features.mean(0), atol=1e-4)
    white = (features - mean) @ matrix
    own = torch.stack([white[labels == label].mean(0) for label in range(3)])[labels]
    spread = (white - own).T @ (white - own) / 300
    assert torch.allclose(spread, torch.eye(2), atol=0.01)  # the ridge keeps it a little below


def test_directions_without_any_spread_grow_only_so_far():
    features = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 4.0], [2.0, 4.0]])
    _, matrix = within_class_whitening(features, torch.tensor([0, 0, 1, 1]))
    lengths = torch.linalg.matrix_norm(matrix, ord=2), matrix.norm(dim=0).min()
    assert lengths[0] == pytest.approx(1000**0.5, rel=1e-3) and lengths[1] == pytest.approx(1 / 1.001**0.5, rel=1e-3)
