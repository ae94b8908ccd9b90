import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.nn.balls import onto_l1_ball

rows = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6)


def test_projections_by_hand():
    given_rows = torch.tensor([[3.0, -1.0, 0.0], [2.0, 2.0, -2.0], [0.5, -0.25, 0.25]])
    # sum 4 onto 2: threshold 1 gives (2, 0, 0); sum 6 onto 2: threshold 4/3 gives thirds; inside: as it is
    expected = torch.tensor([[2.0, 0.0, 0.0], [2 / 3, 2 / 3, -2 / 3], [0.5, -0.25, 0.25]])
    torch.testing.assert_close(onto_l1_ball(given_rows, 2.0), expected)


@given(rows, st.floats(0.1, 10))
def test_it_stays_in_the_ball_and_nothing_nearer_does(values, radius):
    row = torch.tensor([values])
    found = onto_l1_ball(row, radius)
    assert found.abs().sum() <= radius * (1 + 1e-4)
    if row.abs().sum() <= radius:
        torch.testing.assert_close(found, row)
    # the projection x of y onto a convex set satisfies (y - x) . (v - x) <= 0 for its corners v = +-radius e_i
    corners = torch.cat([torch.eye(len(values)), -torch.eye(len(values))]) * radius
    assert (((row - found) * (corners - found)).sum(dim=1) <= 1e-3 * (1 + radius**2)).all()


def test_rows_do_not_interact():
    both = torch.tensor([[9.0, 1.0], [0.1, 0.2]])
    assert torch.equal(onto_l1_ball(both, 1.0)[1:], both[1:])
