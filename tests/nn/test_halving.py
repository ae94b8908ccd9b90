import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from mi_audit.nn.halving import ranking, rounds

CPU = torch.device("cpu")


def ranked(scores, restarts, keep, halving=True):
    """The ranking by a table of scores, and what was asked."""
    asked = []

    def judge(rows, views, done):
        asked.append((rows.tolist(), views, done))
        return scores[rows][:, views.start : views.stop]

    plan = rounds(restarts, keep, scores.shape[1], halving=halving)
    order, means = ranking(judge, plan, len(scores) // restarts, CPU)
    return order, means, asked


@pytest.mark.parametrize(
    ("candidates", "keep", "views", "wanted"),
    [
        (200, 50, 100, [(200, range(10)), (100, range(10, 30)), (50, range(30, 100))]),
        (8, 1, 25, [(8, range(3)), (4, range(3, 8)), (2, range(8, 25))]),
        (8, 5, 25, [(8, range(3)), (5, range(3, 25))]),  # a quarter would be fewer than are kept
        (8, 8, 25, [(8, range(25))]),
        (1, 1, 25, [(1, range(25))]),
        (4, 1, 2, [(4, range(1)), (2, range(1, 2))]),  # no view is left for a round between
        (4, 1, 1, [(4, range(1))]),
    ],
)
def test_rounds_by_hand(candidates, keep, views, wanted):
    assert list(rounds(candidates, keep, views, halving=True)) == wanted
    assert list(rounds(candidates, keep, views, halving=False)) == [(candidates, range(views))]


def test_the_best_survive_and_the_dropped_follow_by_round():
    # 4 candidates, 10 views: all are seen once, the better two up to the third, the best one to the end
    scores = torch.tensor([[0.3] + 9 * [1.0], [0.9] + 9 * [0.0], [0.4] * 10, [0.1] * 10])
    order, means, asked = ranked(scores, 4, 1)
    assert order.tolist() == [2, 1, 0, 3]  # candidate 0, the best one in the long run, was dropped at once
    assert means.tolist() == pytest.approx([0.3, 0.3, 0.4, 0.1])
    assert asked == [([0, 1, 2, 3], range(1), 0), ([1, 2], range(1, 3), 4), ([2], range(3, 10), 8)]


def test_every_class_halves_its_own_candidates():
    scores = torch.arange(8.0)[:, None].expand(8, 10)
    order, _, asked = ranked(scores, 4, 1)
    assert order.tolist() == [3, 2, 1, 0, 7, 6, 5, 4]
    assert [rows for rows, _, _ in asked] == [list(range(8)), [2, 3, 6, 7], [3, 7]]


@given(some.integers(1, 12), some.integers(1, 30), some.integers(0, 2**31), some.data())
def test_who_is_kept_has_the_score_of_the_whole_ranking(restarts, views, seed, data):
    keep = data.draw(some.integers(1, restarts))
    scores = torch.rand(2 * restarts, views, generator=torch.Generator().manual_seed(seed))
    order, means, asked = ranked(scores, restarts, keep)
    kept = order.view(2, -1)[:, :keep]
    assert torch.equal(means[kept], scores.mean(dim=1)[kept])
    assert (means[kept].diff(dim=1) <= 0).all() and order.sort().values.tolist() == list(range(2 * restarts))
    assert sum(len(rows) * len(part) for rows, part, _ in asked) <= scores.numel()


@given(some.integers(1, 12), some.integers(1, 30), some.integers(0, 2**31))
def test_separated_candidates_are_ranked_as_without_rounds(restarts, views, seed):
    random = torch.Generator().manual_seed(seed)
    level = torch.randperm(restarts, generator=random)[:, None]
    scores = level + 0.5 * torch.rand(restarts, views, generator=random)
    assert torch.equal(ranked(scores, restarts, 1)[0], ranked(scores, restarts, 1, halving=False)[0])


@given(some.integers(1, 8), some.integers(1, 20), some.integers(0, 2**31))
def test_nothing_changes_when_all_are_kept(restarts, views, seed):
    scores = torch.randint(3, (restarts, views), generator=torch.Generator().manual_seed(seed)).float()  # with ties
    rounded, whole = ranked(scores, restarts, restarts), ranked(scores, restarts, 1, halving=False)
    assert torch.equal(rounded[0], whole[0]) and torch.equal(rounded[1], whole[1]) and rounded[2] == whole[2]
