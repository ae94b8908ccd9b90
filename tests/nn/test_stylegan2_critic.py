import math

import numpy as np
import pytest
import torch

from mi_audit.nn.stylegan2_critic import Critic, HalvingBlock, ScaledConv
from tests.nn.test_stylegan2 import FILTER, TINY, agree, arrays, correlate, lrelu, numbers, part, randomised, upfirdn


def convolved(x, state, down=False):
    weight = state["weight"] / math.sqrt(state["weight"][0].size)
    half = weight.shape[-1] // 2
    flat = ((0, 0), (0, 0))  # halving: filter at full size, convolve, keep every second pixel
    x = upfirdn(x, FILTER, 1, half + 1, half + 1) if down else np.pad(x, (*flat, (half, half), (half, half)))
    out = np.stack([correlate(image, weight) for image in x])
    out = out[:, :, ::2, ::2] if down else out
    return out + state["bias"][:, None, None] if "bias" in state else out


def halved(x, state):
    long = lrelu(convolved(lrelu(convolved(x, part(state, "refine."))), part(state, "shrink."), down=True))
    return (long + convolved(x, part(state, "shortcut."), down=True)) / math.sqrt(2)


@pytest.mark.parametrize(("size", "down"), [(1, False), (3, False), (1, True), (3, True)])
def test_the_convolution_by_its_formula(size, down):
    net, maps = randomised(ScaledConv(3, 4, size, down=down)), numbers(2, 3, 8, 8)
    agree(net(maps), convolved(maps.numpy(), arrays(net), down))


def test_a_block_by_its_formula():
    net, maps = randomised(HalvingBlock(3, 4)), numbers(2, 3, 8, 8)
    agree(net(maps), halved(maps.numpy(), arrays(net)))


def test_the_whole_score_by_its_formula():
    net, images = randomised(Critic(TINY)), numbers(2, 3, 32, 32)
    state = arrays(net)
    x = lrelu(convolved(images.numpy() * 2 - 1, part(state, "entry.")))
    for block in range(3):
        x = halved(x, part(state, f"blocks.{block}."))
    x = np.concatenate([x, np.full((2, 1, 4, 4), state["variety.average"])], axis=1)
    x = lrelu(convolved(x, part(state, "mix."))).reshape(2, -1)
    for name in ("hidden", "score"):
        x = x @ (state[f"{name}.weight"].T / math.sqrt(x.shape[1])) + state[f"{name}.bias"]
        x = lrelu(x) if name == "hidden" else x
    agree(net(images), x[:, 0])


def test_every_weight_learns():
    net = Critic(TINY).train()
    net(torch.rand(4, 3, 32, 32)).sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in net.parameters())
