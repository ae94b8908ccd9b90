"""The plain loops and the attacks of the package end at the same images, after the same work."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_audit.core.run import Run
from mi_audit.nn.objectives import poincare
from mi_audit.nn.stylegan2 import Generator, Shape
from tests.benchmarks import cases, reference_styles
from tests.benchmarks.reference import counted, turns
from tests.benchmarks.reference_stylegan2 import PerSampleGenerator
from tests.benchmarks.worlds import World, build_world

STEPS = {"gmi": 3, "kedmi": 3, "lomma": 3, "plg-mi": 2, "ppa": 3, "if-gmi": (2, 2)}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Small networks of every prior, none of them trained."""
    common = {"size": 32, "target": "cnn", "fed": 32, "classes": 4, "images": 0}
    students = ("built-in:cnn", "built-in:cnn")
    kinds = {"gan": {"students": students}, "conditional": {}, "style": {"width": 256}}
    root = tmp_path_factory.mktemp("benchmark")
    return {kind: build_world(World(prior=kind, **common, **more), root) for kind, more in kinds.items()}


@pytest.mark.parametrize("name", STEPS)
def test_both_sides_do_the_same(name, worlds):
    case = cases.quick()[name]
    built = worlds[case.timed.world.prior]
    lr = {"gmi": 1e-4, "lomma": 1e-4, "if-gmi": 0.005}.get(name, 0.05)
    settings = {**case.timed.settings, "steps": STEPS[name], "lr": lr}
    settings |= {many: 2 for many in ("restarts", "samples") if many in settings}
    size = replace(case.timed, world=built.world, classes=4, batch=2, settings=settings)
    engine, loop, run = cases.Engine(case, built, "cpu", "32"), cases.Reference(case, built, "cpu"), Run(batch_size=64)
    work, stop = counted(loop.networks)
    found, plain = engine.run(size, run=run), loop.run(size)
    stop()
    assert {k: v for k, v in run.work.items() if v} == dict(work)
    assert found.labels.equal(plain.labels)
    assert (found.images - plain.images).abs().mean() < 2e-3
    assert len(plain.gradients) == len(plain.moved) == (4 if name == "kedmi" else 8)
    still = loop.run(replace(size, settings=settings | {"steps": (1, 1) if name == "if-gmi" else 1}))
    assert (still.images - plain.images).abs().max() > 1e-3  # the steps did something


def test_weights_gather_gradients_as_in_published_code(worlds):
    case = cases.quick()["gmi"]
    loop = cases.Reference(case, worlds["gan"], "cpu")
    size = replace(case.timed, world=worlds["gan"].world, classes=2, batch=2, settings={"steps": 1, "restarts": 1})
    loop.run(size)
    assert all(weight.grad is not None for weight in loop.networks.target.parameters())
    assert all(weight.grad is None for weight in worlds["gan"].target.parameters())


def test_classes_begin_anew_when_a_batch_has_room_for_more(worlds):
    case = cases.quick()["gmi"]
    size = replace(case.timed, world=worlds["gan"].world, classes=6, batch=6, settings={"steps": 1, "restarts": 1})
    for side in (cases.Engine(case, worlds["gan"], "cpu", "32"), cases.Reference(case, worlds["gan"], "cpu")):
        found = side.run(size)
        assert found.labels.tolist() == [0, 1, 2, 3, 0, 1]
        torch.testing.assert_close(found.images[4:], found.images[:2], atol=1e-4, rtol=0)
    assert (size.distinct().classes, size.distinct().batch) == (4, 4)
    assert replace(size, classes=3, batch=2).distinct() == replace(size, classes=3, batch=2)


def test_turns_go_through_batches_and_restarts():
    done = [tuple(part.tolist() for part in turn) for turn in turns(torch.tensor([5, 6, 7]), 2, 2)]
    assert done == [
        ([0, 2], [5, 6], [0, 0]), ([1, 3], [5, 6], [1, 1]), ([4], [7], [0]), ([5], [7], [1]),
    ]  # fmt: skip


@pytest.mark.parametrize("bound", [torch.inf, 1.0])
def test_weights_per_image_make_the_same_images(bound):
    torch.manual_seed(0)
    generator = Generator(Shape(32, 3, (8, 8, 6, 4), 16, 16, 2, bound)).eval().requires_grad_(False)
    for layer in generator.modules():
        if hasattr(layer, "strength"):
            nn.init.normal_(layer.strength)
            nn.init.normal_(layer.bias)
    with torch.no_grad():
        styles = generator.mapping(torch.randn(3, 16))
        expected = (generator.paint(generator.layered(styles)).colours * 0.5 + 0.5).clamp(0, 1)
        torch.testing.assert_close(PerSampleGenerator(generator)(styles), expected, atol=1e-4, rtol=0)


def test_the_distance_from_three_norms_is_that_of_the_closed_form():
    logits, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    torch.testing.assert_close(reference_styles.poincare(logits, labels), poincare(logits, labels), atol=1e-3, rtol=0)
