import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mi_audit.core.defense import Moment
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.negls import NegLS, smoothed_cross_entropy, smoothing


def moment(epoch=0, epochs=100, phase="main"):
    return Moment(phase, epoch, epochs, torch.Generator())


def test_the_schedule_of_a_hundred_epochs_is_the_published_table():
    published = [0.0] * 50 + [-0.05 * (e + 1 - 50) / 50 for e in range(50, 75)] + [-0.05] * 25
    got = [smoothing(-0.05, epoch, 100) for epoch in range(100)]
    assert got == pytest.approx(published, abs=1e-15)
    assert [got[49], got[50], got[74], got[75]] == pytest.approx([0, -0.001, -0.025, -0.05])


@given(epochs=st.integers(1, 300))
def test_the_schedule_falls_and_ends_at_its_full_weight(epochs):
    got = [smoothing(-0.05, epoch, epochs) for epoch in range(epochs)]
    assert got[-1] == -0.05 and sorted(got, reverse=True) == got
    assert all(value == 0 for value in got[: epochs // 2])
    assert all(value == -0.05 or value > -0.025001 for value in got)


def test_the_loss_by_an_independent_sum_over_the_smoothed_target():
    logits, labels, alpha = torch.randn(5, 7), torch.tensor([0, 1, 2, 3, 6]), -0.3
    target = (1 - alpha) * np.eye(7)[labels] + alpha / 7
    z = logits.double().numpy()
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    expected = -(target * log_p).sum(axis=1).mean()
    assert float(smoothed_cross_entropy(logits, labels, alpha)) == pytest.approx(expected, rel=1e-5)


def test_the_target_of_530_classes():
    """The gradient with respect to the logits is probabilities minus target: 1.0499 for the label, else -9.4e-5."""
    logits = torch.zeros(1, 530, requires_grad=True)
    smoothed_cross_entropy(logits, torch.tensor([3]), -0.05).backward()
    target = 1 / 530 - logits.grad[0]
    assert float(target[3]) == pytest.approx(1.0499, abs=5e-5) and float(target[0]) == pytest.approx(-9.4e-5, abs=5e-7)


def test_is_cross_entropy_without_weight():
    logits, labels = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, 0.0), F.cross_entropy(logits, labels))
    torch.testing.assert_close(NegLS().objective(logits, labels, moment(49)), F.cross_entropy(logits, labels))


def test_follows_the_schedule_in_the_main_phase_only():
    logits, labels, defense = torch.randn(4, 6), torch.arange(4), NegLS(alpha=-0.2)
    for epoch, alpha in ((50, -0.004), (74, -0.1), (75, -0.2), (99, -0.2)):
        expected = smoothed_cross_entropy(logits, labels, alpha)
        assert float(defense.objective(logits, labels, moment(epoch))) == pytest.approx(float(expected), rel=1e-6)
    assert defense.objective(logits, labels, moment(99, phase="warm-up")) is None


def test_only_epochs_of_full_weight_count_for_the_weights_that_are_kept():
    assert [epoch for epoch in range(8) if NegLS().in_force(epoch, 8)] == [6, 7]


def test_stays_finite_for_extreme_logits_in_half_precision():
    logits = torch.tensor([[6e4, -6e4, 0.0]], dtype=torch.float16, requires_grad=True)
    loss = smoothed_cross_entropy(logits, torch.tensor([1]), -0.05)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()


def test_refuses_positive_smoothing_without_permission():
    with pytest.raises(ConfigError, match=r"expected alpha < 0, got 0.1, .* set negls.alpha=-0.1"):
        NegLS(alpha=0.1)
    assert NegLS(alpha=0.1, allow_positive=True).alpha == 0.1


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.0, float("nan")])
def test_refuses_a_weight_out_of_range(alpha):
    with pytest.raises(ConfigError, match=r"between -1 and 0|finite numbers as alpha"):
        NegLS(alpha=alpha, allow_positive=True)
