import pytest
import torch

from mi_audit.core.prior import Painting
from mi_audit.nn.stylegan2 import Generator
from mi_audit.nn.stylegan2_objective import PathLengthR1
from tests.nn.test_stylegan2 import TINY


class Straight(Generator):
    """An image of one pixel per style number, each `slope` times that number: the Jacobian is known."""

    def __init__(self):
        super().__init__(TINY)
        self.slope = torch.nn.Parameter(torch.tensor(3.0))

    def styles(self, z):
        return self.layered(z * (self.slope / self.slope.detach()))

    def paint(self, styles, *rest):
        colours = self.slope * styles.mean(dim=1)[:, None, None, :]
        return Painting(super().paint(styles, *rest).features, colours)


def test_the_path_length_by_hand(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    net = Straight().train()
    net.length.fill_(0.5)
    found = PathLengthR1(path_weight=2.0, path_every=4).generator_penalty(net, torch.rand(4, 4), 8)
    # y = 1 / sqrt(1 x 4); each of 8 layers takes an eighth: slope 3 / 8 / 2 per number; squares sum over 4 numbers and
    # are averaged over the layers: sqrt(4) 3 / 16 = 0.375; a = 0.99 x 0.5 + 0.01 x 0.375
    average = 0.99 * 0.5 + 0.01 * 0.375
    assert net.length.item() == pytest.approx(average)
    assert found.item() == pytest.approx(4 * 2 * (0.375 - average) ** 2)


def test_it_is_due_every_so_many_steps_and_its_gradient_reaches_the_generator():
    net, objective = Generator(TINY).train(), PathLengthR1(path_every=3)
    latents = torch.randn(4, 5)
    assert [objective.generator_penalty(net, latents, step) is None for step in range(4)] == [False, True, True, False]
    objective.generator_penalty(net, latents, 0).backward()
    assert all(block.refine.weight.grad.abs().sum() > 0 for block in net.blocks)
