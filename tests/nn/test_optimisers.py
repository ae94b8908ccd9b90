import pytest
import torch

from mi_audit.nn.optimisers import Adam, Momentum, Nesterov, RampedAdam, WarmCosine


def test_two_nesterov_steps_by_hand():
    rule = Nesterov(lr=0.5, momentum=0.5)
    z = torch.tensor([[10.0]])
    z, state = rule.update(z, torch.tensor([[4.0]]), rule.start(z), 0)  # v = -2, z = 10 - 0 + 1.5 * -2
    assert z.item() == 7
    z, (velocity,) = rule.update(z, torch.tensor([[2.0]]), state, 1)  # v = -1 - 1, z = 7 - 0.5 * -2 + 1.5 * -2
    assert (z.item(), velocity.item()) == (5, -2)


@pytest.mark.parametrize("betas", [(0.1, 0.1), (0.9, 0.999)])
def test_adam_steps_like_the_one_of_torch(betas):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 5, generator=generator)
    reference = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([reference], lr=0.05, betas=betas)
    rule, z = Adam(0.05, betas), start
    state = rule.start(z)
    for step in range(3):
        gradient = torch.randn(3, 5, generator=generator)
        reference.grad = gradient
        optimiser.step()
        z, state = rule.update(z, gradient, state, step)
        torch.testing.assert_close(z, reference.detach())


def test_momentum_steps_like_the_one_of_torch():
    reference = torch.tensor([[1.0, 2.0]], requires_grad=True)
    optimiser, rule = torch.optim.SGD([reference], lr=0.1, momentum=0.9), Momentum(0.1)
    z = reference.detach().clone()
    state = rule.start(z)
    for step, gradient in enumerate(torch.tensor([[[4.0, -1.0]], [[2.0, 3.0]], [[0.0, 1.0]]])):
        reference.grad = gradient
        optimiser.step()
        z, state = rule.update(z, gradient, state, step)
        torch.testing.assert_close(z, reference.detach())


def test_steps_warm_up_and_die_away_along_a_cosine():
    rule = WarmCosine(Momentum(1.0, momentum=0.0), steps=8, warm_up=4)
    assert [rule.share(step) for step in range(8)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    )
    z = torch.tensor([[10.0]])
    moved, state = rule.update(z, torch.tensor([[4.0]]), rule.start(z), 1)
    assert moved.item() == 10 - 0.5 * 4 and state[0].item() == -4


@pytest.mark.parametrize("rule", [Adam(0.1), Momentum(0.1), Nesterov(0.1), WarmCosine(Adam(0.1), 9)])
def test_rows_never_interact(rule):
    z, gradient = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    moved, state = rule.update(z, gradient, rule.start(z), 0)
    assert (moved[1] == 0).all() and (moved[0] != 0).all()
    assert all((memory[1] == 0).all() for memory in state)


def test_a_ramp_by_hand():
    rule = RampedAdam(lr=2.0, steps=100, up=0.05, down=0.25)
    # linear over 5 of 100 steps, flat, then 0.5 - 0.5 cos(pi (1 - t) / 0.25): half way down at t = 0.875
    shares = [rule.share(step) for step in (0, 2, 5, 75)]
    assert shares == pytest.approx([0, 0.4, 1, 1])
    assert RampedAdam(lr=2.0, steps=200).share(175) == pytest.approx(0.5)
    z, gradient = torch.tensor([[1.0]]), torch.tensor([[4.0]])
    state = rule.start(z)
    moved, state = rule.update(z, gradient, state, 0)
    assert moved.item() == 1
    moved, _ = rule.update(moved, gradient, state, 1)
    assert moved.item() == pytest.approx(1 - 2.0 * 0.2)  # an equal gradient moves Adam by the step size
