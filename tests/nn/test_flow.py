import math

import pytest
import torch
from scipy import stats

from mi_audit.nn.flow import Flow
from tests.toy import streams

SMALL = Flow(width=5, scales=2, steps=2, hidden=3)


def bent(flow, rows=3, scale=0.3):
    """Flows that differ from each other and from the identity in every weight."""
    return flow.start(streams(rows)) + scale * streams(rows).normal("bend", flow.size)


def noise(rows=3, count=4, width=5):
    return streams(rows).normal("noise", count, width)


def test_starts_as_the_identity_at_no_cost():
    flow = Flow(width=12, steps=1)
    found, stretched = flow.draw(flow.start(streams(3)), noise(width=12))
    assert (stretched == 0).all()
    assert torch.equal(found.sort(dim=2).values, noise(width=12).sort(dim=2).values)  # shuffled, nothing else
    assert flow.divergence(flow.start(streams(3)), noise(width=12)).tolist() == pytest.approx([0] * 3, abs=1e-5)


@pytest.mark.parametrize("width", [2, 3, 5, 8])
def test_the_stretch_is_the_determinant_of_the_jacobian(width):
    flow = Flow(width=width, scales=3, steps=2, hidden=3)
    row = bent(flow, rows=1)
    for vector in noise(1, 3, width)[0]:
        jacobian = torch.autograd.functional.jacobian(lambda e: flow.draw(row, e[None, None])[0][0, 0], vector)
        _, stretched = flow.draw(row, vector[None, None])
        assert jacobian.slogdet().logabsdet.item() == pytest.approx(stretched.item(), abs=1e-4)


def test_a_flow_of_one_step_by_hand():
    flow = Flow(width=2, scales=1, steps=1, hidden=1)
    # first layer 2 x + 1, second 1 x + 0, last 3 x - 1; then rescaling by (2, 4) and shifts (0.5, -0.5)
    row = torch.tensor([[2.0, 1.0, 1.0, 0.0, 3.0, -1.0, math.log(2), math.log(4), 0.5, -0.5]])
    assert flow.size == row.shape[1]
    found, stretched = flow.draw(row, torch.tensor([[[0.5, 10.0], [-1.0, 0.0]]]))
    # 0.5 -> 2 -> 2, moves 10 by 5; -1 -> elu(-1) = a -> elu(a) = b, moves 0 by 3 b - 1
    a = math.exp(-1) - 1
    b = math.exp(a) - 1
    before = torch.tensor([[0.5, 15.0], [-1.0, 3 * b - 1]])
    order = torch.randperm(2, generator=torch.Generator().manual_seed(0))
    expected = before[:, order] * torch.tensor([2.0, 4.0]) + torch.tensor([0.5, -0.5])
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(stretched, torch.full((1, 2), math.log(8)))


def test_a_flow_that_only_rescales_costs_what_the_gaussian_does():
    flow = Flow(width=2, scales=1, steps=1, hidden=1)
    mean, deviation = 0.7, 0.5
    row = torch.zeros(1, flow.size)
    row[:, -4:-2], row[:, -2:] = math.log(deviation), mean
    expected = 2 * (mean**2 + deviation**2 - 1 - 2 * math.log(deviation)) / 2
    found = flow.divergence(row, noise(1, 200_000, 2))
    assert found.item() == pytest.approx(expected, abs=0.02)


def test_a_later_scale_is_normal_given_the_one_before():
    flow = Flow(width=4, scales=2, steps=1, hidden=1)
    row = torch.zeros(1, flow.size)
    split = Flow(width=2, scales=1, steps=1, hidden=1).size  # weights of the first scale come before the split's
    row[:, split + 8 : split + 10], row[:, split + 10 : split + 12] = 3.0, math.log(0.5)  # biases: means, deviations
    found, stretched = flow.draw(row, noise(1, 4000, 4))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0))
    added = found[0][:, order.argsort()][:, 2:]
    assert stats.kstest(added.flatten().numpy(), stats.norm(3.0, 0.5).cdf).pvalue > 1e-4
    torch.testing.assert_close(stretched, torch.full_like(stretched, 2 * math.log(0.5)))


def test_rows_are_flows_of_their_own():
    rows = bent(SMALL)
    together, alone = SMALL.draw(rows, noise())[0], SMALL.draw(rows[1:2], noise()[1:2])[0]
    torch.testing.assert_close(together[1:2], alone)
    changed = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(SMALL.divergence(changed, noise())[0], changed)
    assert (gradient[1:] == 0).all() and (gradient[0] != 0).float().mean() > 0.9


def test_scales_double_and_those_too_narrow_are_left_out():
    assert Flow(width=128)._widths() == [32, 64, 128]
    assert Flow(width=100)._widths() == [25, 50, 100]
    assert Flow(width=4)._widths() == [2, 4]
