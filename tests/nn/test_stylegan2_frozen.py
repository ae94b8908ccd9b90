import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch

from mi_audit.nn import stylegan2_frozen
from mi_audit.nn.stylegan2_frozen import FrozenGenerator, SwiftPainter
from tests.nn.test_stylegan2 import TINY, generator, numbers

WIDE = replace(TINY, widths=(24, 20, 16, 12), style=16, latent=16)


def styles_of(net, count=2):
    return net.styles(numbers(count, net.shape.latent).to(net.mapping.average.dtype)).detach().clone()


def gradient(net, styles, blocks=None, painting=None):
    styles = styles.clone().requires_grad_()
    painted = net.paint(styles, painting, blocks)
    goal = numbers(*painted.colours.shape, seed=3).to(styles.dtype)
    return painted, torch.autograd.grad((painted.colours.to(goal.dtype) * goal).sum(), styles)[0]


@pytest.mark.parametrize("bound", [math.inf, 0.5])
def test_it_is_the_generator_in_double_precision(bound):
    net = generator(replace(TINY, bound=bound))
    (plain, slope), (painted, found) = (gradient(one, styles_of(net)) for one in (net, FrozenGenerator(net)))
    for ours, theirs in zip((*painted, found), (*plain, slope), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_it_is_the_generator_in_single_precision_to_rounding():
    net = generator(WIDE).float()
    (plain, slope), (painted, found) = (gradient(one, styles_of(net)) for one in (net, FrozenGenerator(net)))
    for ours, theirs in zip(painted, plain, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert torch.cosine_similarity(found.flatten(1), slope.flatten(1)).min() > 0.9999


def test_mixed_precision_is_as_near_as_that_of_the_generator():
    net = generator(WIDE).float()
    exact = net.paint(styles_of(net)).colours

    def gap(one):
        with torch.autocast("cpu", torch.bfloat16):
            painted = one.paint(styles_of(net))
        return painted, ((painted.colours.float() - exact).norm() / exact.norm()).item()

    painted, ours = gap(FrozenGenerator(net))
    assert painted.features.dtype == torch.bfloat16 and painted.colours.dtype == torch.float32
    assert 1e-4 < ours < 1.5 * gap(net)[1] < 0.1


def test_maps_are_laid_out_channels_last():
    net = generator(WIDE)
    painted = FrozenGenerator(net).paint(styles_of(net))
    assert painted.features.is_contiguous(memory_format=torch.channels_last)


def test_blocks_may_be_run_one_after_the_other_and_pass_gradients_to_features():
    net = generator()
    swift, styles = FrozenGenerator(net), styles_of(net)
    halfway = net.paint(styles, None, range(2))
    slopes = []
    for one in (net, swift):
        features = halfway.features.clone().requires_grad_()
        painted = one.paint(styles, halfway._replace(features=features), range(2, 4))
        slopes += torch.autograd.grad(painted.colours.square().sum(), features)
    torch.testing.assert_close(*slopes, atol=1e-9, rtol=1e-9)
    again = swift.paint(styles, swift.paint(styles, None, range(2)), range(2, 4))
    assert torch.equal(again.colours, swift.paint(styles).colours)


@pytest.mark.parametrize("frugal", [False, True])
def test_memory_decides_what_is_computed_again_and_changes_nothing(frugal, monkeypatch):
    net, sizes = generator(), []
    swift, styles = FrozenGenerator(net), styles_of(net)
    expected = gradient(swift, styles)[1]
    needed = 2 * (2 * 6 * 16 + 2 * 5 * 64 + 2 * 4 * 256 + 2 * 3 * 1024) * 8  # two images, two maps per block, doubles
    monkeypatch.setattr(stylegan2_frozen, "_free_memory", lambda _: 4 * needed - frugal)
    swift = FrozenGenerator(net)

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        swift.paint(styles.clone().requires_grad_())
    assert (max(sizes) >= 2 * 3 * 1024) is not frugal
    assert torch.equal(gradient(swift, styles)[1], expected)


def test_free_memory_is_asked_for_once(monkeypatch):
    asked = []
    monkeypatch.setattr(stylegan2_frozen, "_free_memory", lambda device: asked.append(device) or 1 << 40)
    net = generator()
    swift, styles = FrozenGenerator(net), styles_of(net)
    with torch.no_grad():
        swift.paint(styles)
    assert not asked
    for _ in range(2):
        gradient(swift, styles)
    assert asked == [torch.device("cpu")]


def test_the_copy_is_made_again_when_weights_have_changed():
    net = generator()
    painter, styles = SwiftPainter(net), styles_of(net)
    first = painter.paint(styles)
    made = painter._made
    painter.paint(styles)
    assert painter._made is made is not None
    net.blocks[1].refine.bias.add_(1)
    changed = painter.paint(styles)
    assert painter._made is not made and not torch.allclose(changed.colours, first.colours)
    torch.testing.assert_close(changed.colours, net.paint(styles).colours)
    for twin in (copy.deepcopy(painter), pickle.loads(pickle.dumps(painter))):
        assert twin._made is None and twin.generator is not net
        assert torch.equal(twin.paint(styles).colours, changed.colours)


def test_the_copy_goes_where_the_generator_goes():
    net = generator(WIDE).float()
    painter, styles = SwiftPainter(net), styles_of(net)
    painter.paint(styles)
    net.double()
    assert painter.paint(styles.double()).colours.dtype == torch.float64
    net.to("meta")
    with pytest.raises(RuntimeError, match="meta"):  # a device without autocast, which the old copy would not mind
        painter.paint(styles.double())


def test_a_copy_that_is_made_in_inference_mode_serves_searches():
    net = generator()
    painter, styles = SwiftPainter(net), styles_of(net)
    with torch.inference_mode():
        painter.paint(styles)
    made = painter._made
    assert gradient(painter, styles)[1].abs().sum() > 0 and painter._made is made


def test_weights_made_in_inference_mode_are_painted_with_as_they_are():
    with torch.inference_mode():
        net = copy.deepcopy(generator())
        painter, styles = SwiftPainter(net), styles_of(net)
        assert torch.equal(painter.paint(styles).colours, net.paint(styles).colours) and painter._made is None


def test_weights_that_take_gradients_get_them():
    net = generator()
    painter, weight = SwiftPainter(net), net.blocks[2].grow.weight.requires_grad_()
    (slope,) = torch.autograd.grad(painter.paint(styles_of(net)).colours.sum(), weight)
    assert slope.abs().sum() > 0
