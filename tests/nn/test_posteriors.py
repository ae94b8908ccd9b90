import math

import pytest
import torch

from mi_audit.nn.flow import Flow
from mi_audit.nn.posteriors import FlowPosterior, GaussianPosterior
from tests.toy import streams

POSTERIORS = [GaussianPosterior(4), FlowPosterior(Flow(4, scales=2, steps=2, hidden=3))]
every = pytest.mark.parametrize("posterior", POSTERIORS, ids=["gaussian", "flow"])


@every
def test_starts_as_the_standard_normal_distribution(posterior):
    rows = posterior.start(streams())
    drawn = posterior.sample(rows, streams(), 0, 3000).view(3, 3000, 4)
    torch.testing.assert_close(drawn.mean(dim=1), torch.zeros(3, 4), atol=0.09, rtol=0)  # 5 / sqrt(3000)
    torch.testing.assert_close(drawn.std(dim=1), torch.ones(3, 4), atol=0.07, rtol=0)
    torch.testing.assert_close(posterior.divergence(rows, streams(), 0, 8), torch.zeros(3), atol=1e-5, rtol=0)


@every
def test_samples_of_a_row_come_together_and_are_all_different(posterior):
    rows = posterior.start(streams())
    drawn = posterior.sample(rows, streams(), 5, 4)
    assert drawn.shape == (12, 4) and len(drawn.unique(dim=0)) == 12
    torch.testing.assert_close(drawn[4:8], posterior.sample(rows[1:2], streams()[1:2], 5, 4))
    assert not torch.equal(drawn, posterior.sample(rows, streams(), 6, 4))


def test_the_divergence_of_a_gaussian_by_hand():
    posterior = GaussianPosterior(2)
    rows = torch.tensor([[1.0, 0.0, math.log(4.0), 0.0]])  # mean (1, 0), variance (4, 1)
    found = posterior.divergence(rows, streams(1), 0, 1)
    assert found.item() == pytest.approx((1 + 4 - 1 - math.log(4)) / 2)
