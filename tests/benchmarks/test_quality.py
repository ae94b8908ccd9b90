import pytest
import torch
from torch import nn

from mi_audit.nn.optimisers import Adam, Nesterov
from tests.benchmarks import quality

LABELS = torch.arange(40) // 10
WORK = {"generator_forward": 8, "target_forward": 8, "critic_forward": 0}


def judged(**changes):
    gradient = torch.eye(40)
    found = {
        "gradients": (gradient, gradient),
        "rebatched": 0.0,
        "moved": 0.0,
        "work": (WORK, {name: count for name, count in WORK.items() if count}),
        "losses": (torch.full((40,), 0.5), torch.full((40,), 0.5)),
        "hits": (torch.ones(40), torch.ones(40)),
        "labels": LABELS,
        "exact": True,
    }
    return quality.judge(**found | changes)


def test_the_same_is_equal():
    line = judged()
    assert line.ok and line.cosine == 1 and line.same_work and line.images == 40
    assert line.as_columns()["quality_ok"] and line.as_columns()["quality"]["loss"] == 0.5


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"gradients": (torch.eye(40), torch.eye(40) + 0.02)}, "cosine"),
        ({"gradients": (torch.eye(40), torch.full((40, 40), torch.nan))}, "cosine"),
        ({"rebatched": 1.0}, "step depends on the batch"),
        ({"work": (WORK, WORK | {"target_forward": 9})}, "work"),
        ({"losses": (torch.full((40,), 0.52), torch.full((40,), 0.5))}, "loss"),
        ({"losses": (torch.full((40,), torch.nan), torch.full((40,), 0.5))}, "loss"),
        ({"hits": (torch.full((40,), 0.9), torch.ones(40))}, "rate"),
    ],
)
def test_what_is_worse_is_named(changes, problem):
    line = judged(**changes)
    assert not line.ok and len(line.problems) == 1 and problem in line.problems[0]


@pytest.mark.parametrize("part", ["losses", "hits"])
def test_better_results_are_equal_enough(part):
    better = (torch.full((40,), 0.1), torch.full((40,), 0.5))
    assert judged(**{part: better if part == "losses" else better[::-1]}).ok


def test_half_precision_may_take_other_ways_to_the_same_end():
    assert judged(gradients=(torch.eye(40), torch.eye(40) + 0.5), rebatched=1.0, exact=False).ok


def test_small_differences_of_loss_and_rate_are_allowed():
    one_less = torch.cat([torch.zeros(1), torch.ones(39)])
    assert judged(losses=(torch.full((40,), 0.509), torch.full((40,), 0.5)), hits=(one_less, torch.ones(40))).ok


@pytest.mark.parametrize(("worse", "is_equal"), [(20, True), (40, False)])
def test_what_chance_explains_is_equal(worse, is_equal):
    # worse in one of two identities: the mean -1/2 has the standard error 8^-1/2 = 0.35; in both it is -1 without one
    ours, theirs = torch.ones(40), torch.ones(40)
    ours[:worse] = 0
    assert judged(hits=(ours, theirs), labels=torch.arange(40) // 20).ok == is_equal


def test_whole_identities_are_drawn_again():
    groups = torch.tensor([0, 0, 1, 1])
    # the means of two groups are 0 and 1: a mean of two draws is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4
    assert quality.spread_of_mean(torch.tensor([0, 0, 1, 1]), groups) == pytest.approx(8**-0.5, rel=0.05)
    assert quality.spread_of_mean(torch.tensor([0, 1, 0, 1]), groups) == 0
    assert quality.spread_of_mean(torch.tensor([0, 1]), torch.zeros(2)) == 0


def test_cosines_are_those_of_rows():
    ours, theirs = torch.tensor([[1.0, 0], [3, 4], [1, 0]]), torch.tensor([[2.0, 0], [4, 3], [0, 1]])
    torch.testing.assert_close(quality.cosines(ours, theirs), torch.tensor([1, 0.96, 0], dtype=torch.float64))


def test_rows_are_compared_with_themselves_in_another_batch():
    rows = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 1.0]])
    assert quality.rebatched(rows, rows) == 0
    assert quality.rebatched(rows, rows + torch.tensor([[0.5, 0], [0, 0.5], [9, 9]])) == pytest.approx(0.1)


def test_the_largest_difference_of_a_row_counts_and_of_those_the_middle_one():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert quality.moved_apart(rows, rows) == 0
    assert quality.moved_apart(rows, rows + torch.tensor([[0.0, -0.5], [0.25, 0.125], [9.0, 0.0]])) == 0.5


def test_losses_and_hits_of_images():
    net, images = nn.Flatten(), torch.tensor([[0.0, 0.0], [2.0, 0.0]])[:, :, None, None]
    labels = torch.tensor([1, 1])
    expected = torch.tensor([2.0, 1 + torch.e**2]).log()
    torch.testing.assert_close(quality.losses(net, images, labels), expected)
    assert quality.hits(net, images, torch.tensor([0, 1])).tolist() == [1, 0]


def test_the_time_to_quality_is_the_least_that_reaches_it():
    points = [(1.0, 0.2), (2.0, 0.5), (4.0, 0.45)]
    assert quality.time_to_quality(points, 0.45) == 2 and quality.time_to_quality(points, 0.6) is None


@pytest.mark.parametrize("rule", [Nesterov(0.5), Adam(0.5)])
def test_the_first_step_is_seen_and_nothing_stays_behind(rule):
    latents, gradient, update = torch.ones(2, 3), torch.full((2, 3), 2.0), type(rule).update
    with quality.first_step() as seen:
        moved, state = rule.update(latents, gradient, rule.start(latents), 0)
        rule.update(moved, gradient, state, 1)
    assert len(seen) == 1 and seen[0][0].equal(gradient) and seen[0][1].equal(moved)
    assert type(rule).update is update
