import math

import torch
from torch import nn

from mi_audit.nn.adversarial import NonSaturatingR1, WassersteinGP, slopes


class Weighted(nn.Module):
    """Scores an image by a weighted sum of its four pixels, squared when asked."""

    def __init__(self, *weights: float, power: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights))
        self.power = power

    def forward(self, images):
        return (images.flatten(1) ** self.power * self.weight).sum(dim=1)


def images(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 2)


def test_the_wasserstein_losses_by_hand():
    real, fake = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 0.0])
    assert WassersteinGP().critic_loss(real, fake) == 1.0
    assert WassersteinGP().generator_loss(fake) == -2.5


def test_the_non_saturating_losses_by_hand():
    real, fake = torch.zeros(2), torch.full((2,), math.log(3.0))
    torch.testing.assert_close(NonSaturatingR1().critic_loss(real, fake), torch.tensor(math.log(2) + math.log(4)))
    torch.testing.assert_close(NonSaturatingR1().generator_loss(fake), torch.tensor(math.log(4 / 3)))


def test_the_gradient_penalty_of_a_linear_critic_by_hand():
    critic = Weighted(2.0, 2.0, 1.0, 4.0)  # slope 5 everywhere
    penalty = WassersteinGP(weight=10.0).penalty(critic, images(0.0, 1.0), images(1.0, 0.5), torch.rand(2), 7)
    torch.testing.assert_close(penalty, torch.tensor(10.0 * (5 - 1) ** 2))
    penalty.backward()
    torch.testing.assert_close(critic.weight.grad, 10 * 2 * (5 - 1) * critic.weight.detach() / 5)


def test_the_gradient_penalty_is_taken_between_real_and_generated():
    critic = Weighted(1.0, 1.0, 1.0, 1.0, power=2)  # slope 2 sqrt(4) x at a constant image x
    mix = torch.tensor([0.25])
    penalty = WassersteinGP(weight=1.0).penalty(critic, images(0.0), images(1.0), mix, 0)
    torch.testing.assert_close(penalty, torch.tensor((4 * 0.25 - 1.0) ** 2))
    penalty = WassersteinGP(weight=1.0).penalty(critic, images(1.0), images(0.0), mix, 0)
    torch.testing.assert_close(penalty, torch.tensor((4 * 0.75 - 1.0) ** 2))


def test_the_r1_penalty_by_hand():
    critic = Weighted(2.0, 2.0, 1.0, 4.0)  # squared slope 25
    objective = NonSaturatingR1(gamma=0.5, every=4)
    penalty = objective.penalty(critic, images(0.0, 1.0), images(0.0, 1.0), torch.rand(2), 8)
    torch.testing.assert_close(penalty, torch.tensor(4 * 0.5 / 2 * 25))


def test_the_r1_penalty_is_lazy_and_keeps_its_average_weight():
    critic = Weighted(1.0, 0.0, 0.0, 0.0)
    objective = NonSaturatingR1(gamma=1.0, every=3)
    due = [objective.penalty(critic, images(1.0), images(1.0), torch.rand(1), step) for step in range(6)]
    assert [penalty is not None for penalty in due] == [True, False, False, True, False, False]
    assert sum(float(penalty.detach()) for penalty in due if penalty is not None) / 6 == 0.5


def test_the_r1_penalty_looks_at_some_real_images_only():
    critic = Weighted(1.0, 1.0, 1.0, 1.0, power=2)
    objective = NonSaturatingR1(gamma=2.0, every=1, images=1)
    penalty = objective.penalty(critic, images(0.5, 9.0), images(7.0, 7.0), torch.rand(2), 0)
    torch.testing.assert_close(penalty, torch.tensor(4.0))  # four pixels of slope 2 * 0.5


def test_slopes_belong_to_one_image_each():
    critic = Weighted(1.0, 2.0, 3.0, 4.0, power=2)
    batch = torch.rand(3, 1, 2, 2)
    torch.testing.assert_close(slopes(critic, batch), 2 * batch.flatten(1) * critic.weight)
