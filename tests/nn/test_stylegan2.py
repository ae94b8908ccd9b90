"""The network against an independent computation of the papers' equations: NumPy, double precision, explicit loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mi_audit.core.errors import ConfigError
from mi_audit.nn.stylegan2 import Colour, Generator, Mapping, Shape, StyledConv, doubled, low_pass

TINY = Shape(size=32, channels=3, widths=(6, 5, 4, 3), latent=5, style=4, depth=2)
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64

Array = NDArray[np.float64]


def lrelu(x: Array, clip: float = math.inf) -> Array:
    return np.clip(np.where(x > 0, x, 0.2 * x) * math.sqrt(2), -clip, clip)


def upfirdn(x: Array, kernel: Array, up: int, before: int, after: int, down: int = 1) -> Array:
    """Insert zeros, pad, convolve with the mirrored kernel, keep every `down`-th: the definition, one loop per tap."""
    b, c, h, w = x.shape
    wide = np.zeros((b, c, h * up, w * up))
    wide[:, :, ::up, ::up] = x
    wide = np.pad(wide, ((0, 0), (0, 0), (before, after), (before, after)))
    rows, columns = wide.shape[2] - kernel.shape[0] + 1, wide.shape[3] - kernel.shape[1] + 1
    out = np.zeros((b, c, rows, columns))
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out += kernel[::-1, ::-1][i, j] * wide[:, :, i : i + rows, j : j + columns]
    return out[:, :, ::down, ::down]


def correlate(x: Array, weight: Array) -> Array:
    """Valid correlation of one image (c h w) with weights (o c k k)."""
    k = weight.shape[-1]
    rows, columns = x.shape[1] - k + 1, x.shape[2] - k + 1
    out = np.zeros((len(weight), rows, columns))
    for i in range(k):
        for j in range(k):
            out += np.tensordot(weight[:, :, i, j], x[:, i : i + rows, j : j + columns], axes=1)
    return out


def linear(x: Array, layer: dict[str, Array], speed: float = 1.0) -> Array:
    return x @ (layer["weight"] * speed / math.sqrt(layer["weight"].shape[1])).T + layer["bias"] * speed


def mapping(z: Array, state: dict[str, Array], depth: int) -> Array:
    w = z / np.sqrt((z**2).mean(axis=1, keepdims=True) + 1e-8)
    for layer in range(depth):
        w = lrelu(linear(w, part(state, f"layers.{layer}."), speed=0.01))
    return w


def styled(x: Array, w: Array, state: dict[str, Array], up: bool, clip: float = math.inf) -> Array:
    """Equations 1 and 3 of the paper with weights of each image's own; `up` is a true convolution on inserted zeros."""
    style = linear(w, part(state, "style."))
    out = []
    for image, s in zip(x, style, strict=True):
        weight = state["weight"] * s[None, :, None, None]
        weight = weight / np.sqrt((weight**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
        if up:
            sparse = np.zeros((image.shape[0], 2 * image.shape[1], 2 * image.shape[2]))
            sparse[:, ::2, ::2] = image
            # pad for a 3x3 kernel (1 each side) and for four taps around the new pixels (2 before, 1 after)
            sparse = np.pad(sparse, ((0, 0), (3, 2), (3, 2)))
            made = correlate(sparse, weight[:, :, ::-1, ::-1])
            out.append(upfirdn(made[None], 4 * FILTER, 1, 0, 0)[0])
        else:
            out.append(correlate(np.pad(image, ((0, 0), (1, 1), (1, 1))), weight))
    return lrelu(np.stack(out) + state["noise"] * state["strength"] + state["bias"][:, None, None], clip)


def colour(x: Array, w: Array, state: dict[str, Array], clip: float = math.inf) -> Array:
    style = linear(w, part(state, "style.")) / math.sqrt(x.shape[1])
    weights = state["weight"][None, :, :, 0, 0] * style[:, None, :]
    return np.clip(np.einsum("boi,bihw->bohw", weights, x) + state["bias"][:, None, None], -clip, clip)


def picture(z: Array, state: dict[str, Array], shape: Shape) -> Array:
    """The published code clamps what has been multiplied by the gain of the activation; colours have a gain of one."""
    clip = shape.bound
    w = mapping(z, part(state, "mapping."), shape.depth)
    x = np.repeat(state["blocks.0.start"][None], len(z), axis=0)
    x = styled(x, w, part(state, "blocks.0.refine."), False, clip)
    image = colour(x, w, part(state, "blocks.0.colour."), clip)
    for block in range(1, len(shape.widths)):
        x = styled(x, w, part(state, f"blocks.{block}.grow."), True, clip)
        x = styled(x, w, part(state, f"blocks.{block}.refine."), False, clip)
        image = upfirdn(image, 4 * FILTER, 2, 2, 1) + colour(x, w, part(state, f"blocks.{block}.colour."), clip)
    return image


def part(state: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Double precision, eval mode, and no weight left at a start that hides a mistake."""
    rng = torch.Generator().manual_seed(seed)
    module = module.double().eval().requires_grad_(False)
    for name, tensor in module.state_dict().items():
        if name not in ("bound", "length"):
            tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=torch.float64))
            if ".mapping." in f".{name}" or name.startswith("layers."):
                tensor.mul_(100)
    return module


def arrays(module: torch.nn.Module) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def agree(found: torch.Tensor, expected: Array) -> None:
    torch.testing.assert_close(found, torch.from_numpy(np.ascontiguousarray(expected)), atol=1e-10, rtol=1e-10)


def generator(shape: Shape = TINY) -> Generator:
    made = randomised(Generator(shape))
    assert isinstance(made, Generator)
    return made


def test_the_mapping_by_its_formula():
    net, z = randomised(Mapping(TINY)), numbers(3, 5)
    agree(net(z), mapping(z.numpy(), arrays(net), 2))


@pytest.mark.parametrize("up", [False, True])
def test_the_modulated_convolution_by_its_formula(up):
    net = randomised(StyledConv(4, 3, 16 if up else 8, 5, up=up))
    maps, w = numbers(2, 4, 8, 8), numbers(2, 5, seed=2)
    agree(net(maps, w), styled(maps.numpy(), w.numpy(), arrays(net), up))


def test_the_colours_by_their_formula():
    net, maps, w = randomised(Colour(4, 3, 5)), numbers(2, 4, 8, 8), numbers(2, 5, seed=2)
    agree(net(maps, w), colour(maps.numpy(), w.numpy(), arrays(net)))


def test_the_low_pass_filter_and_the_doubling_by_their_formula():
    maps = numbers(2, 3, 6, 6)
    agree(low_pass(maps, pad=2), upfirdn(maps.numpy(), FILTER, 1, 2, 2))
    agree(low_pass(maps, pad=1, gain=4.0), upfirdn(maps.numpy(), 4 * FILTER, 1, 1, 1))
    agree(low_pass(maps, pad=1, stride=2), upfirdn(maps.numpy(), FILTER, 1, 1, 1, down=2))
    agree(doubled(maps), upfirdn(maps.numpy(), 4 * FILTER, 2, 2, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_whole_image_by_its_formula(channels):
    shape = replace(TINY, channels=channels)
    net, z = generator(shape), numbers(2, 5)
    raw = picture(z.numpy(), arrays(net), shape)
    assert raw.std() > 0.1
    agree(net.paint(net.styles(z)).colours, raw)
    agree(net(z), np.clip(raw * 0.5 + 0.5, 0, 1))


def test_a_bound_clamps_every_layer():
    free, bound = generator(), generator(replace(TINY, bound=0.5))
    z = numbers(2, 5)
    painted = bound.paint(bound.styles(z))
    assert painted.features.abs().max() == 0.5
    agree(painted.colours, picture(z.numpy(), arrays(bound), bound.shape))
    assert not torch.allclose(painted.colours, free.paint(free.styles(z)).colours)
    assert bound.blocks[0](bound.styles(z), None, None, 0.5)[1].abs().max() <= 0.5


def test_styles_stay_in_single_precision_under_autocast():
    net, z = generator().float(), numbers(2, 5).float()
    styles = net.styles(z)
    moved = styles + 0.004  # less than bfloat16 can add to most numbers

    def changes():
        """Of the scales of a layer, and of their gradient in the styles."""
        layer, w = net.blocks[1].refine, moved[:, 0].detach().requires_grad_()
        scales = layer.style(w)
        assert scales.dtype == torch.float32
        (slope,) = torch.autograd.grad(scales.square().sum(), w)
        return scales.detach() - layer.style(styles[:, 0]), slope

    def change_of_the_image():
        return (net.paint(moved).features - net.paint(styles).features).float().flatten()

    exact, exact_image = changes(), change_of_the_image()
    with torch.autocast("cpu", torch.bfloat16):
        assert net.mapping(z).dtype == torch.float32
        torch.testing.assert_close(net.styles(z), styles)
        (scales, slope), (exact_scales, exact_slope) = changes(), exact
        torch.testing.assert_close(scales, exact_scales, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(slope, exact_slope, atol=0.02, rtol=0.02)  # backward passes may round
        found = change_of_the_image()
    assert (
        torch.cosine_similarity(found, exact_image, dim=0) > 0.65
    )  # convolutions round; without single precision it is 0.56


def test_blocks_may_be_run_one_after_the_other():
    net, z = generator(), numbers(2, 5)
    styles = net.styles(z)
    halfway = net.paint(styles, None, range(0, 2))
    assert halfway.features.shape == (2, 5, 8, 8)
    assert halfway.colours.shape == (2, 3, 8, 8)
    agree(net.paint(styles, halfway, range(2, 4)).colours, net.paint(styles).colours.numpy())


def test_every_layer_takes_its_own_style():
    net, z = generator(), numbers(1, 5)
    plain = net.layered(net.mapping(z))
    assert plain.shape == (1, 8, 4)
    for layer in range(8):
        other = plain.clone()
        other[:, layer] += 1
        ways = [[net.paint(styles, None, range(last + 1)).features for last in range(4)] for styles in (plain, other)]
        # layer 0 refines block 0; layers 2 b - 1 and 2 b are the convolutions of block b; the last one only colours
        changed = [not torch.equal(one, two) for one, two in zip(*ways, strict=True)]
        assert changed == [block >= (layer + 1) // 2 for block in range(4)]
    assert net.layered(plain) is plain


def test_training_draws_noise_and_mixes_styles_and_evaluation_does_not():
    net, z = generator(), numbers(2, 5)
    torch.manual_seed(0)
    assert torch.equal(net(z), net(z))
    net.train()
    assert not torch.equal(net(z), net(z))
    mixed = net.styles(z.repeat(50, 1))
    assert 0.75 < (mixed[:, 0] != mixed[:, -1]).any(dim=1).double().mean() < 1
    net.mixing = 0.0
    assert torch.equal(net.styles(z)[:, 0], net.styles(z)[:, -1])


def test_the_average_style_follows_in_training_only():
    net, z = randomised(Mapping(TINY, decay=0.75)), numbers(6, 5)
    before = net.average.clone()
    w = net(z)
    assert torch.equal(net.average, before)
    net.train()(z)
    agree(net.average, (0.75 * before + 0.25 * w.mean(dim=0)).numpy())


def test_frugal_gradients_are_the_same():
    def gradient(frugal):
        net = generator()
        net.frugal = frugal
        styles = net.styles(numbers(2, 5)).detach().clone().requires_grad_()
        net.paint(styles).colours.square().sum().backward()
        return styles.grad

    torch.testing.assert_close(gradient(True), gradient(False))


def test_frugal_keeps_nothing_but_what_passes_between_blocks():
    def kept(frugal):
        net, sizes = generator(), []
        net.frugal = frugal
        styles = net.styles(numbers(2, 5)).detach().requires_grad_()

        def note(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            net.paint(styles)
        return sum(sizes)

    assert kept(True) < kept(False) / 2


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512, 1024])
def test_every_resolution_can_be_built_and_is_told_from_its_weights(size):
    shape = Shape.tapering(size, 3, base=32768)
    with torch.device("meta"):
        net = Generator(shape)
    assert net.shape.layers == 2 * math.log2(size) - 2
    state = net.state_dict() | {"bound": torch.tensor(256.0)}
    assert Shape.of(state) == replace(shape, bound=256.0)


def test_the_published_size_has_the_published_number_of_weights():
    with torch.device("meta"):
        net = Generator(Shape.tapering(1024, 3, base=32768))
    # mapping 8 (512^2 + 512) = 2.10 M and synthesis 28.27 M, as in the paper's "30 M"
    assert sum(weight.numel() for weight in net.parameters()) == 30_370_060


@pytest.mark.parametrize(
    "wrong", [{"size": 48}, {"channels": 2}, {"widths": (4, 4)}, {"depth": 0}, {"widths": (4, 4, 4, 0)}]
)
def test_shapes_that_do_not_exist_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        replace(TINY, **wrong)
