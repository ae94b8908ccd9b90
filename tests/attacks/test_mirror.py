import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_audit.attacks.mirror import Mirror, box_of, typical
from mi_audit.core.errors import ConfigError, Diverged
from mi_audit.core.run import Run
from mi_audit.core.target import Access, TorchTarget
from mi_audit.nn.pool import Pool
from tests.toy import ToyPrior, target, watched

SMOKE = Mirror(**Mirror.smoke)


def attack(run=None, prior=None, toy=None, classes=(0, 1, 2, 3), **settings):
    plan = replace(SMOKE, **settings)
    return plan.run(toy or target(), prior or ToyPrior(), torch.tensor(classes), run or Run())


def test_the_box_by_hand():
    # w = 1, 3 and -0.2, -0.6: p = 1, 3 and -1, -3: mean +-2, standard deviation sqrt(2)
    box = box_of(torch.tensor([[1.0, -0.2], [3.0, -0.6]]), wide=2.0)
    # first: 2 +- 2.83 = -0.83, 4.83; its lower bound is negative, so a fifth of it in w; the second mirrors that
    low, high = 2 - 2 * math.sqrt(2), 2 + 2 * math.sqrt(2)
    torch.testing.assert_close(box.low, torch.tensor([low / 5, -high / 5]))
    torch.testing.assert_close(box.high, torch.tensor([high, -low]))


def test_styles_stay_in_the_box_of_the_pool():
    decoded = watched(attack, deviations_wide=0.5)
    pool = Pool(size=64, truncation=0.7).draw(target(), ToyPrior(), torch.tensor([0]), 1, Run()).pool
    box = box_of(pool, 0.5)
    _, _, *path = decoded  # the pool, and the start
    assert all((styles >= box.low).all() and (styles <= box.high).all() for styles in path)
    assert (path[-1] == box.high).any() and (path[-1] == box.low).any()


def rows(*orders):
    """Scores whose labels rank as given, over six labels; earlier rows are surer of their first label."""
    scores = torch.zeros(len(orders), 7)
    for row, order in enumerate(orders):
        scores[row, list(order)] = torch.tensor([0.9 - 0.1 * row, 0.05, 0.04, 0.03, 0.02])[: len(order)]
    return scores


def test_the_largest_group_with_two_runner_up_labels_in_common_is_typical():
    # rows 1, 2 and 3 share 4 and 5; rows 0 and 1 share 1 and 2; row 4 is of another label
    scores = rows((0, 1, 2, 3, 6), (0, 1, 2, 4, 5), (0, 4, 5, 1, 3), (0, 3, 4, 5, 6), (1, 0, 4, 5, 6))
    assert typical(scores, 0).tolist() == [False, True, True, True, False]


def test_of_equal_groups_the_one_with_the_surest_member_is_typical():
    few = torch.zeros(4, 9)
    few[:, 0] = torch.tensor([0.5, 0.9, 0.4, 0.3])
    for row, labels in enumerate(((1, 2, 5, 6), (3, 4, 7, 8), (1, 2, 7, 8), (3, 4, 5, 6))):
        few[row, list(labels)] = 0.01
    # each of four pairs is shared by two rows; row 1 is the surest and shares (3, 4) with row 3, (7, 8) with row 2
    assert typical(few, 0).tolist() in ([False, True, False, True], [False, True, True, False])


def test_one_common_label_will_do_and_then_none():
    one = torch.zeros(2, 9)
    one[:, 0] = 0.5
    one[0, [1, 2, 3, 4]] = one[1, [4, 5, 6, 7]] = 0.01
    third = torch.zeros(1, 9)
    third[0, [1, 2, 3, 5]] = 0.01
    third[0, 0] = 0.4
    assert typical(one, 0).tolist() == [True, True]
    none = one.clone()
    none[1, [4, 8]] = torch.tensor([0.0, 0.01])
    assert typical(none, 0).tolist() == [True, True]
    # rows 0 and 2 share three labels, rows 0 and 1 one
    assert typical(torch.cat([one, third]), 0).tolist() == [True, False, True]


def test_when_no_candidate_is_of_the_label_all_are_taken():
    assert typical(rows((1, 2, 3), (2, 1, 3)), 0).tolist() == [True, True]


def test_members_of_the_group_come_first_and_the_surest_of_them():
    scores = rows((0, 1, 2, 3, 6), (0, 1, 2, 4, 5), (0, 4, 5, 1, 3), (0, 3, 4, 5, 6))
    plan = replace(SMOKE, restarts=4, keep=4)
    assert plan._kept(scores, torch.tensor([0])).tolist() == [1, 2, 3, 0]
    twice = torch.cat([scores, scores])
    assert replace(plan, keep=1)._kept(twice, torch.tensor([0, 0])).tolist() == [1, 5]


def test_the_target_sees_mirror_images_half_of_the_time():
    usual, never = attack(flip=0.5), attack(flip=0.0)
    assert not torch.allclose(usual.images, never.images, atol=1e-6)


def test_charges_one_query_per_image():
    toy, run = target(), Run()
    found = attack(run, toy=toy)
    assert toy.ledger.spent == {Access.WHITE_BOX: 12 * 30, Access.SCORE: 64 + 12}
    assert run.work == {
        "generator_forward": 64 + 12 * 30 + 12, "generator_backward": 12 * 30,
        "target_forward": 64 + 12 * 30 + 12, "target_backward": 12 * 30,
    }  # fmt: skip
    assert SMOKE.sample_steps * 4 == 12 * 30 and len(found.images) == 8
    torch.testing.assert_close(found.confidence, target().scores(found.images)[range(8), found.labels])


def test_a_broken_target_is_named():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    nn.init.constant_(net[1].weight, torch.nan)
    with pytest.raises(Diverged, match="stage 'optimise' at step 0 of 30"):
        attack(toy=TorchTarget(net, 4, net[1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": 9},
        {"pool": 4},
        {"steps": 0},
        {"lr": 0.0},
        {"deviations_wide": 0.0},
        {"truncation": 1.1},
        {"flip": -0.1},
        {"pool": 1, "restarts": 1},
    ],
)
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match="expected"):
        Mirror(**wrong)


def test_ships_the_published_settings():
    published = Mirror()
    assert (published.pool, published.restarts, published.keep, published.steps) == (100_000, 8, 1, 20_000)
    assert (published.lr, published.truncation, published.deviations_wide, published.flip) == (0.25, 0.7, 1.0, 0.5)


def test_the_quick_settings_mirror_nothing():
    assert Mirror(**Mirror.quick).flip == 0
