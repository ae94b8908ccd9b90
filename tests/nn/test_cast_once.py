import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from mi_audit.nn import cast_once as module
from mi_audit.nn.cast_once import CastConv2d, CastConvTranspose2d, CastLinear, cast_once

LAYERS = {
    "1x1": lambda bias: nn.Conv2d(8, 12, 1, bias=bias),
    "3x3": lambda bias: nn.Conv2d(8, 12, 3, padding=1, bias=bias),
    "same": lambda bias: nn.Conv2d(8, 12, 3, padding="same", bias=bias),
    "strided": lambda bias: nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=bias),
    "dilated": lambda bias: nn.Conv2d(8, 12, 3, dilation=2, bias=bias),
    "grouped": lambda bias: nn.Conv2d(8, 12, 3, groups=4, bias=bias),
    "transposed": lambda bias: nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1, bias=bias),
    "transposed, uneven": lambda bias: nn.ConvTranspose2d(
        8, 12, 3, stride=2, output_padding=1, groups=2, dilation=2, bias=bias
    ),
    "linear": lambda bias: nn.Linear(6, 12, bias=bias),
}


def frozen_pair(layer):
    plain = layer.requires_grad_(False).to(memory_format=torch.channels_last)
    quick = copy.deepcopy(plain)
    net = nn.Sequential(quick)
    cast_once(net)
    return plain, net[0]


def passed(layer, rows=3, mixed=True):
    start = torch.randn(rows, 8, 6, 6, generator=torch.Generator().manual_seed(rows)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        made = layer(start)
    return made.detach(), torch.autograd.grad(made.float().square().sum(), start)[0]


def same(ours, theirs):
    return all(map(torch.equal, ours, theirs)) and ours[0].dtype == theirs[0].dtype


def noting(run, seen):
    def noted(given, weight, bias, *rest):
        seen.append((weight, bias))
        return run(given, weight, bias, *rest)

    return noted


def kept(layer):
    return layer.casts._kept


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_same_bits_as_the_plain_layer(kind, bias, mixed):
    torch.manual_seed(0)
    plain, quick = frozen_pair(LAYERS[kind](bias))
    assert type(quick) in (CastConv2d, CastConvTranspose2d, CastLinear)
    for rows in (1, 3, 3):
        assert same(passed(quick, rows, mixed), passed(plain, rows, mixed))
    assert (kept(quick) is not None) is mixed


@pytest.mark.parametrize("kind", ["3x3", "transposed", "linear"])
def test_weights_are_cast_once_and_stay_what_they_are(kind, monkeypatch):
    plain, quick = frozen_pair(LAYERS[kind](True))
    passed(quick)
    _, _, cast = kept(quick)
    assert all(part.dtype == torch.bfloat16 for part in cast)
    for mixed in (True, False, True):
        passed(quick, mixed=mixed)
    assert kept(quick)[2] is cast
    assert all(map(torch.equal, quick.parameters(), plain.parameters()))
    seen = []
    for name in ("conv2d", "conv_transpose2d", "linear"):
        monkeypatch.setattr(module.F, name, noting(getattr(module.F, name), seen))
    passed(quick)
    assert [tuple(map(id, used)) for used in seen] == [tuple(map(id, cast))]


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_changed_weights_are_cast_anew(name):
    plain, quick = frozen_pair(LAYERS["3x3"](True))
    passed(quick)
    for layer in (plain, quick):
        getattr(layer, name).mul_(-2)
    assert same(passed(quick), passed(plain))


def test_converted_weights_are_cast_anew():
    plain, quick = frozen_pair(LAYERS["3x3"](True))
    passed(quick)
    for layer in (plain, quick):
        layer.weight.data = layer.weight.data.flip(0)
    assert same(passed(quick), passed(plain))


def test_another_precision_is_cast_to():
    plain, quick = frozen_pair(LAYERS["linear"](True))
    passed(quick)
    with torch.autocast("cpu", torch.float16):
        start = torch.ones(2, 6)
        assert quick(start).dtype == torch.float16 and torch.equal(quick(start), plain(start))


def test_weights_that_take_gradients_get_them():
    _, quick = frozen_pair(LAYERS["3x3"](True))
    for weight in (quick.bias, quick.weight):
        weight.requires_grad_()
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                made = quick(torch.ones(1, 8, 6, 6))
            assert torch.autograd.grad(made.float().sum(), weight)[0].abs().sum() > 0
    assert kept(quick) is None


def test_weights_made_in_inference_mode_are_left_to_autocast():
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(6, 4)).requires_grad_(False)
    cast_once(net)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net(torch.ones(2, 6)).dtype == torch.bfloat16
    assert kept(net[0]) is None


def test_what_is_cast_in_inference_mode_serves_searches_afterwards():
    plain, quick = frozen_pair(LAYERS["3x3"](True))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        quick(torch.ones(2, 8, 6, 6))
    cast = kept(quick)[2]
    assert same(passed(quick), passed(plain)) and kept(quick)[2] is cast


def test_copies_cast_for_themselves():
    _, quick = frozen_pair(LAYERS["3x3"](True))
    expected = passed(quick)
    for twin in (copy.deepcopy(quick), pickle.loads(pickle.dumps(quick))):
        assert kept(twin) is None and kept(quick) is not None
        assert same(passed(twin), expected)
        assert kept(twin)[2][0] is not kept(quick)[2][0]


def test_gradients_of_functions_and_of_weights_put_in_for_one_pass():
    plain, quick = frozen_pair(LAYERS["linear"](True))
    start, weights = torch.randn(2, 6), dict(quick.named_parameters())

    def of_start(layer):
        def total(given):
            with torch.autocast("cpu", torch.bfloat16):
                return layer(given).float().square().sum()

        return torch.func.grad(total)(start)

    def of_weights(layer):
        def total(given):
            with torch.autocast("cpu", torch.bfloat16):
                return torch.func.functional_call(layer, given, start).float().square().sum()

        return torch.func.grad(total)(weights)["weight"]

    for find in (of_start, of_weights, of_start):
        assert torch.equal(find(quick), find(plain))
    twice = start[None].repeat(2, 1, 1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(twice), plain(twice))


def test_many_weights_at_a_time_are_left_to_autocast():
    plain, quick = frozen_pair(nn.Linear(6, 4))
    start = torch.randn(2, 6)
    many = {name: torch.stack([weight, 2 * weight]) for name, weight in plain.named_parameters()}

    def of(layer):
        with torch.autocast("cpu", torch.bfloat16):
            return torch.vmap(lambda weights: torch.func.functional_call(layer, weights, start))(many)

    assert torch.equal(of(quick), of(plain)) and kept(quick) is None


def test_compiled_passes_leave_casting_to_the_compiler(monkeypatch):
    plain, quick = frozen_pair(LAYERS["3x3"](True))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert same(passed(quick), passed(plain)) and kept(quick) is None


def test_a_size_that_is_asked_for_is_given():
    plain, quick = frozen_pair(nn.ConvTranspose2d(8, 4, 3, stride=2))
    start = torch.randn(2, 8, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(start, [8, 8]), plain(start, [8, 8]))


def test_layers_that_compute_weights_or_mirror_maps_stay():
    mirrored, normed = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Linear(2, 2)
    net = nn.Sequential(mirrored, parametrizations.weight_norm(normed), nn.utils.spectral_norm(nn.Linear(2, 2)))
    kinds = [type(layer) for layer in net]
    cast_once(net)
    assert [type(layer) for layer in net] == kinds


def test_weights_in_double_precision_stay_so():
    net = nn.Sequential(nn.Linear(6, 2)).double().requires_grad_(False)
    cast_once(net)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.ones(2, 6, dtype=torch.float64)).dtype == torch.float64


def test_devices_without_autocast_are_left_alone():
    _, quick = frozen_pair(LAYERS["linear"](True))
    assert quick.to("meta")(torch.ones(2, 6, device="meta")).device.type == "meta"
