import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mi_audit.core.errors import Diverged
from mi_audit.nn.fisher_profile import Sample, best_cut, curves, profile
from mi_audit.nn.intervals import clustered_means

POSITIVE = arrays(np.float64, 5, elements=st.floats(1e-3, 1e3))


def test_curves_by_hand():
    # shares 1/4, 1/4, 1/2 and 1/2, 1/2, 0; cumulated 1/4, 1/2, 1 and 1/2, 1, 1
    found = curves(np.array([1.0, 1.0, 2.0]), np.array([3.0, 3.0, 0.0]))
    assert found.share_cls.tolist() == [0.25, 0.25, 0.5]
    assert found.share_mi.tolist() == [0.5, 0.5, 0.0]
    assert found.ratio.tolist() == [2.0, 2.0, 0.0]
    assert found.cumulative_cls.tolist() == [0.25, 0.5, 1.0]
    assert found.cumulative_mi.tolist() == [0.5, 1.0, 1.0]
    assert found.gap.tolist() == [0.25, 0.5, 0.0]
    assert best_cut(found.gap) == 2


def test_the_ratio_is_unknown_where_classification_has_nothing():
    found = curves(np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    assert math.isnan(found.ratio[0]) and found.ratio[1] == 0.5


def test_best_cut_of_no_gain_is_none_and_never_the_head():
    assert best_cut(np.array([-0.1, -0.2, 0.0])) == 0
    assert best_cut(np.array([0.1, 0.2, 0.9])) == 2
    assert best_cut(np.array([0.2, 0.2 + 1e-15, 0.0])) == 1
    assert best_cut(np.array([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0]])).tolist() == [1, 2]


@given(POSITIVE, POSITIVE, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_curves_do_not_depend_on_the_size_of_either_loss(cls, mi, first, second):
    one, other = curves(cls, mi), curves(first * cls, second * mi)
    for name in one._fields:
        assert np.allclose(getattr(one, name), getattr(other, name))
    assert one.cumulative_cls[-1] == pytest.approx(1) and one.gap[-1] == pytest.approx(0, abs=1e-9)
    assert (one.share_mi * one.share_cls >= 0).all()


@given(POSITIVE, POSITIVE, arrays(np.int64, 5, elements=st.integers(1, 1000)))
def test_the_ratio_of_two_units_does_not_depend_on_their_sizes(cls, mi, sizes):
    one, other = curves(cls, mi).ratio, curves(cls / sizes, mi / sizes).ratio
    assert np.allclose(one / one[0], other / other[0])


def task(rows, people):
    return Sample(np.array(rows, dtype=float), np.array(people))


CLS = task([[1, 3, 4], [3, 1, 4], [2, 2, 4], [2, 2, 4]], [0, 0, 1, 1])
MI = task([[8, 4, 4], [8, 4, 4]], [5, 7])
SIZES = np.array([2, 1, 4])


def test_mean_and_total_by_hand():
    # means over images: 2, 2, 4 and 8, 4, 4; per parameter 1, 2, 1 and 4, 4, 1
    mean = profile(CLS, MI, SIZES, "empirical", "mean")
    assert [row.fisher_cls for row in mean.values] == [1, 2, 1]
    assert [row.fisher_mi for row in mean.values] == [4, 4, 1]
    assert [row.share_mi for row in mean.values] == pytest.approx([4 / 9, 4 / 9, 1 / 9])
    assert mean.values[0].ratio == pytest.approx(16 / 9)
    assert mean.cut == 1  # gaps 4/9 - 1/4 = 0.194 and 8/9 - 3/4 = 0.139
    total = profile(CLS, MI, SIZES, "true", "total")
    assert [row.fisher_cls for row in total.values] == [2, 2, 4]
    assert total.cut == 1 and total.labels == "true" and total.scale == "total"
    free = profile(CLS, MI, SIZES, "true", "scale-free")
    assert [row.fisher_mi for row in free.values] == [8, 4, 4]


def test_intervals_hold_the_values_and_vanish_without_variation():
    found = profile(CLS, MI, SIZES, "empirical", "mean")
    for row in found.values:  # both people have the same means, so there is nothing to draw
        assert row.ratio_interval.low == pytest.approx(row.ratio) == row.ratio_interval.high
    varied = profile(task([[1, 3, 4], [9, 1, 4], [2, 5, 4]], [0, 1, 2]), MI, SIZES, "empirical", "mean")
    for row in varied.values:
        assert row.share_cls_interval.low < row.share_cls < row.share_cls_interval.high
        assert row.share_mi_interval.low == pytest.approx(row.share_mi_interval.high)
    assert varied.cut_interval.low <= varied.cut <= varied.cut_interval.high
    assert float(varied.cut_interval.low).is_integer()


def test_images_of_one_person_are_drawn_together():
    # 100 images, two people: the mean is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4, whatever the number of images
    rows = [[1, 1, 1]] * 50 + [[3, 1, 1]] * 50
    found = profile(task(rows, [0] * 50 + [1] * 50), MI, SIZES, "empirical", "total")
    assert found.values[0].share_cls_interval.low == pytest.approx(1 / 3)
    assert found.values[0].share_cls_interval.high == pytest.approx(3 / 5)


def test_one_person_has_no_interval():
    found = profile(CLS, task([[8, 4, 4]], [5]), SIZES, "empirical", "mean")
    assert found.cut_interval is None and all(row.ratio_interval is None for row in found.values)


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.full((2, 3), np.nan)])
def test_refuses_what_has_no_gradient(bad):
    with pytest.raises(Diverged, match="expected gradients for inversion"):
        profile(CLS, Sample(bad, np.array([0, 1])), SIZES, "empirical", "mean")


def test_clustered_means_by_enumeration():
    # clusters with sums 2 and 6 of 1 and 3 images: draws (2, 0), (1, 1), (0, 2) give 4/2, 8/4, 12/6
    same = clustered_means(np.array([[2.0], [6.0]]), np.array([1.0, 3.0]), 50, 0)
    assert np.allclose(same, 2)
    found = clustered_means(np.array([[0.0], [6.0]]), np.array([1.0, 3.0]), 4000, 0)
    values, counts = np.unique(found.round(9), return_counts=True)
    assert values.tolist() == [0, 1.5, 2]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def people_with_gradients(some, count):
    """One image each of `count` people, of whom the first `some` have gradients."""
    rows = [[1 + place, 2, 3] if place < some else [0, 0, 0] for place in range(count)]
    return task(rows, range(count))


def test_draws_of_people_without_gradients_are_left_out():
    # 3 of 6 have none: a draw meets only them with probability 1/64, which has no shares
    found = profile(CLS, people_with_gradients(3, 6), SIZES, "empirical", "total")
    for row in found.values:
        assert 0 <= row.share_mi_interval.low <= row.share_mi <= row.share_mi_interval.high <= 1
        assert row.gap_interval is not None
    # of unit 1 the person with 1, 2, 3 alone has a sixth, the one with 3, 2, 3 three eighths
    assert found.values[0].share_mi_interval.low == pytest.approx(1 / 6)
    assert found.values[0].share_mi_interval.high == pytest.approx(3 / 8)
    assert found.cut_interval is not None


def test_too_many_draws_without_gradients_leave_no_interval():
    # 4 of 6 have none: (4/6)^6 = 8.8 % of the draws
    found = profile(CLS, people_with_gradients(2, 6), SIZES, "empirical", "total")
    assert found.cut_interval is None
    assert all(row.gap_interval is None and row.share_cls_interval is None for row in found.values)
    assert profile(people_with_gradients(2, 6), MI, SIZES, "empirical", "total").cut_interval is None
