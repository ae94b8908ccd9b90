import math

import pytest
import torch

from mi_audit.nn.objectives import aimed, cross_entropy, max_margin, poincare


def test_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])  # softmax: three quarters and one quarter
    assert cross_entropy(logits, torch.tensor([0, 1])).tolist() == pytest.approx([math.log(4 / 3), math.log(4)])


def test_the_aimed_confidence_by_hand():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0], [math.log(9), 0.0]], requires_grad=True)  # 3/4, 1/2, 9/10
    loss = aimed(logits, torch.tensor([0, 0, 0]), 0.75)
    assert loss.tolist() == pytest.approx([0.0, math.log(3 / 2), math.log(6 / 5)], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[1, 0] < 0 < gradient[2, 0]  # below it the class has to rise, above it has to fall


def test_the_margin_by_hand():
    logits = torch.tensor([[5.0, 1.0, 2.0], [5.0, 1.0, 2.0]])
    assert max_margin(logits, torch.tensor([0, 1])).tolist() == [2.0 - 5.0, 5.0 - 1.0]


def test_the_gradient_of_the_margin_touches_the_class_and_its_rival_only():
    logits = torch.tensor([[5.0, 1.0, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(max_margin(logits, torch.tensor([0])).sum(), logits)
    assert gradient.tolist() == [[-1.0, 0.0, 1.0]]


def test_poincare_by_hand():
    logits = torch.tensor([[2.0, -1.0, 1.0]])  # u = (1/2, -1/4, 1/4), |u|^2 = 3/8
    outside = 1 - 0.9999**2
    right = 2 * (0.4999**2 + 1 / 16 + 1 / 16) / (5 / 8 * outside)  # v = (0.9999, 0, 0)
    wrong = 2 * (1 / 4 + (1 / 4 + 0.9999) ** 2 + 1 / 16) / (5 / 8 * outside)  # v = (0, 0.9999, 0)
    found = poincare(logits.repeat(2, 1), torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([math.acosh(1 + right), math.acosh(1 + wrong)], rel=1e-6)


def test_poincare_agrees_with_the_published_form_in_double_precision():
    logits = 5 * torch.randn(50, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(50) % 9
    u = logits / logits.abs().sum(1, keepdim=True)
    v = torch.zeros_like(u).scatter_(1, labels[:, None], 1 - 1e-4)
    delta = 2 * (u - v).square().sum(1) / ((1 - u.square().sum(1)) * (1 - v.square().sum(1)))
    torch.testing.assert_close(poincare(logits.float(), labels), torch.acosh(1 + delta).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("logits", [[1e4, 0.0, 0.0], [0.0, 0.0, 1e4], [0.0, 0.0, 0.0], [1e-20, 0.0, 0.0]])
def test_poincare_and_its_gradient_stay_finite_at_the_edge(logits):
    point = torch.tensor([logits], requires_grad=True)
    loss = poincare(point, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss.sum(), point)
    assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("loss", [cross_entropy, poincare])
def test_losses_are_single_precision_per_sample_and_fall_towards_the_label(loss):
    logits = torch.tensor([[0.5, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 1.0, 1.0]], dtype=torch.bfloat16)
    found = loss(logits, torch.zeros(3, dtype=torch.long))
    assert found.dtype == torch.float32 and found.shape == (3,)
    assert found[0] > found[1] > found[2]
