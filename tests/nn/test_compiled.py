"""Compiled passes against the network as it is; `eager` traces like every backend and compiles nothing."""

import copy
import io
import logging
import shutil
import sys

import pytest
import torch
import torch._dynamo
from torch import nn

from mi_audit.core.run import is_out_of_memory
from mi_audit.nn import compiled as module
from mi_audit.nn.compiled import SIZES, compiled, compiles, compiling, pays
from mi_audit.nn.frozen import frozen
from mi_audit.nn.stylegan2 import Generator, Shape
from mi_audit.nn.stylegan2_frozen import FrozenGenerator

passes: list[int] = []


@pytest.fixture(autouse=True)
def clean():
    passes.clear()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network() -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return net.eval().requires_grad_(False)


def counting(graph, example):
    """A backend that notes how many rows it compiled for."""
    passes.append(rows_of(example))
    return graph.forward


def rows_of(values) -> int:
    """Of the images among weights."""
    return next(len(value) for value in values if value.shape[1:] == (2, 4, 4))


def both(net: nn.Module, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(rows, 2, 4, 4, generator=torch.Generator().manual_seed(rows)).requires_grad_()
    gave = net(images)
    (gradient,) = torch.autograd.grad(gave.square().sum(), images)
    return gave.detach(), gradient


def close(ours, theirs) -> bool:
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_nowhere_was_it_measured_to_pay():
    assert not any(map(pays, ("cpu", "cuda", "cuda:1", "mps")))
    assert [compiles(wanted, "cpu") for wanted in ("auto", "on", "off")] == [False, True, False]


def test_auto_follows_the_measurement(monkeypatch):
    monkeypatch.setattr(module, "PAYS", {"cpu": False, "cuda": True})
    assert compiles("auto", "cuda:1") and not compiles("off", "cuda") and not compiles("auto", "cpu")


def test_nothing_is_compiled_unless_it_is_wanted():
    assert "forward" not in vars(frozen(network(), torch.rand(2, 2, 4, 4)))
    with compiling(False):
        assert "forward" not in vars(compiled(network()))


def test_frozen_networks_are_compiled_inside_the_block_and_give_the_same():
    net = network()
    with compiling(True, counting):
        quick = frozen(net, torch.rand(2, 2, 4, 4))
        assert passes == []  # not for the rows of the checks
        assert close(both(quick, 6), both(net, 6)) and passes == [6]
    assert close(both(quick, 9), both(net, 9)) and passes == [6]  # outside of it runs as it is


def test_rows_that_shrink_or_vary_neither_compile_for_ever_nor_change_the_result():
    net = network()
    with compiling(True, counting):
        quick = compiled(copy.deepcopy(net))
        for rows in (60, *range(60, 0, -1), 61, 60, 7):
            assert close(both(quick, rows), both(net, rows))
    assert passes == [60, 32, 16, 8, 61]  # the first, powers of two below it, a larger one


def test_beyond_so_many_sizes_a_network_runs_as_it_is():
    net = network()
    with compiling(True, counting):
        quick = compiled(copy.deepcopy(net))
        for rows in range(100, 100 + 3 * SIZES):
            assert close(both(quick, rows), both(net, rows))
    assert len(passes) == SIZES


def test_copies_of_a_network_share_what_was_compiled():
    net = network()
    with compiling(True, counting):
        for _ in range(3):
            assert close(both(compiled(copy.deepcopy(net)), 5), both(net, 5))
    assert passes == [5]


def test_passes_without_a_gradient_with_listeners_or_in_training_are_left_alone():
    net = network()
    with compiling(True, counting):
        quick = compiled(net)
        with torch.no_grad():
            quick(torch.rand(3, 2, 4, 4))
        quick(torch.rand(3, 2, 4, 4))
        caught = []
        handle = quick[3].register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
        both(quick, 3)
        handle.remove()
        quick[0].weight.requires_grad_(True)
        both(quick, 3)
        quick.requires_grad_(False).train()
        both(quick, 3)
        assert passes == [] and caught[0].shape == (3, 64)
        both(quick.eval(), 3)
        assert passes == [3]


def test_weights_that_move_are_seen():
    net = network()
    with compiling(True, counting):
        quick = compiled(copy.deepcopy(net))
        both(quick, 4)
        for own in (net, quick):
            own[3].weight.mul_(2)
        assert close(both(quick, 4), both(net, 4)) and passes == [4]


def test_copies_and_other_processes_compile_for_themselves():
    buffer = io.BytesIO()
    with compiling(True, "eager"):
        quick = compiled(network())
        both(quick, 4)
        torch.save(quick, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(quick), torch.load(buffer, weights_only=False)):
            assert other.forward.net is other and not other.forward.known
            assert close(both(other, 4), both(quick, 4)) and len(other.forward.known) == 1


def test_several_inputs_and_outputs_keep_their_rows():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 2)

        def forward(self, latents, labels, before, scale):
            mixed = latents * scale + self.table(labels)
            return mixed, mixed.sum(dim=1) if before is None else mixed + before

    net = Conditional().eval().requires_grad_(False)
    latents, labels = torch.rand(5, 2), torch.tensor([0, 1, 2, 1, 0])
    with compiling(True, "eager"):
        quick = compiled(copy.deepcopy(net))
        for rows in (5, 3):  # three are filled up to the five there are
            given = latents[:rows].clone().requires_grad_(), labels[:rows], None, 2.0
            assert all(torch.equal(a, b) for a, b in zip(quick(*given), net(*given), strict=True))
        given = latents, labels, latents.clone().requires_grad_(), 2.0
        assert torch.equal(quick(*given)[1], net(*given)[1])
        assert len(quick.forward.known) == 2


@pytest.mark.parametrize("frugal", [False, True])
def test_the_blocks_of_a_style_generator_are_compiled_unless_computed_again(frugal):
    generator = Generator(Shape(32, 1, (4, 4, 4, 4), 8, 8, 1)).eval().requires_grad_(False)
    styles = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))

    def painted(painter):
        painter.frugal, given = frugal, styles.clone().requires_grad_()
        gave = painter.paint(given).colours
        return gave.detach(), torch.autograd.grad(gave.square().sum(), given)[0]

    expected = painted(FrozenGenerator(generator))
    with compiling(True, "eager"):
        painter = FrozenGenerator(generator)
        gave = painted(painter)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gave, expected, strict=True))
    assert {len(block.forward.known) for block in painter.blocks} == {0 if frugal else 1}


def failing(graph, example):
    raise RuntimeError("expected a compiler, got none")


def wrong(graph, example):
    return lambda *given: [part + 0.1 for part in graph.forward(*given)]


def silent(graph, example):
    return lambda *given: [part.detach() for part in graph.forward(*given)]


@pytest.mark.parametrize(
    ("backend", "message"),
    [(failing, "the compiler failed"), (wrong, "would give something else"), (silent, "the compiler failed")],
)
def test_what_fails_or_differs_falls_back_once_and_says_so(backend, message, caplog):
    net = network()
    with compiling(True, backend), caplog.at_level(logging.WARNING, "mi_audit"):
        quick = compiled(copy.deepcopy(net))
        for rows in (4, 4, 9):
            assert close(both(quick, rows), both(net, rows))
    assert [message in record.getMessage() for record in caplog.records] == [True]


def test_a_device_without_memory_is_no_failure_of_the_compiler():
    def full(graph, example):
        def run(*given):
            if rows_of(given) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return graph.forward(*given)

        return run

    with compiling(True, full):
        quick = compiled(network())
        with pytest.raises(RuntimeError) as caught:
            both(quick, 8)
        assert is_out_of_memory(caught.value) and not quick.forward.refused


def test_random_numbers_are_left_alone():
    before = torch.random.get_rng_state()
    with compiling(True, "eager"):
        quick = compiled(network())
    torch.random.set_rng_state(before)
    with compiling(True, "eager"):
        both(quick, 4)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="needs a C++ compiler")
def test_inductor_gives_what_the_network_gives():
    net = network()
    with compiling(True):
        quick = frozen(net, torch.rand(2, 2, 4, 4))
        for rows in (20, 20, 5, 20, 3):
            assert close(both(quick, rows), both(net, rows))
        with torch.autocast("cpu", torch.bfloat16):
            mixed, usual = both(quick, 20), both(net, 20)
        assert torch.allclose(mixed[0].float(), usual[0].float(), atol=0.02)
    assert not quick.forward.refused and len(quick.forward.known) == 3
