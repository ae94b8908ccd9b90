import math

import pytest
import torch

from mi_audit.core.errors import ConfigError
from mi_audit.core.random import Streams
from mi_audit.core.run import Averaging, Run
from mi_audit.nn.averaging import VIEWS, Noise, averaged
from mi_audit.nn.descent import Descent
from mi_audit.nn.optimisers import Adam

COUNT = 6
KINDS = ("paa", "taa", "erase")


def world(rows=3, size=8):
    labels = torch.arange(rows)
    images = torch.rand(rows, 1, size, size, generator=torch.Generator().manual_seed(0))
    return images, labels, Streams.of(0, labels, torch.zeros_like(labels))


def cubes(images, labels, streams):
    """A loss that is not linear in the pixels, so that the mean of gradients differs from the gradient of the mean."""
    del streams
    return (images**3).sum(dim=(1, 2, 3)) * (1 + labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [1, 4, 99])
def test_value_and_gradient_are_the_means_over_all_views(kind, at_once):
    images, labels, streams = world()
    latents = images.clone().requires_grad_()
    shown = 0.5 * latents  # a generator, through which the gradient has to be pulled back
    found = averaged(cubes, shown, labels, streams, 7, Averaging(kind, COUNT), at_once)
    (gradient,) = torch.autograd.grad(found.sum(), latents, retain_graph=True)
    # the definition, one view after the other, through the generator every time
    keys = streams.branches(COUNT).keys.view(-1, COUNT)
    views = [cubes(VIEWS[kind](shown, Streams(keys[:, i]), 7), labels, streams) for i in range(COUNT)]
    expected = torch.stack(views).mean(dim=0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), latents)[0])


def test_noise_is_a_share_of_the_range_of_its_own_image():
    images, _, streams = world(rows=2, size=64)
    images = images * torch.tensor([1.0, 0.1])[:, None, None, None]
    noise = Noise(0.05)(images, streams, 0) - images
    spread = images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3))
    # the deviation of 4096 draws is known to 1.1 %
    torch.testing.assert_close(noise.flatten(1).std(dim=1), 0.05 * spread, rtol=0.05, atol=0)
    assert not torch.equal(noise, Noise(0.05)(images, streams, 1) - images)


@pytest.mark.parametrize("kind", KINDS)
def test_averaging_keeps_what_the_views_agree_on(kind):
    """The slope of a ripple finer than the views changes sign between them; that of a ramp does not."""
    images, labels, streams = world(rows=1, size=16)
    ripple = torch.tensor([1.0, -1.0]).repeat(8)

    def roughness(averaging):
        shown = images.clone().requires_grad_()

        def loss(images, labels, streams):
            del labels, streams
            return (images * 40).sin().mul(ripple).sum(dim=(1, 2, 3)) + images.sum(dim=(1, 2, 3))

        found = loss(shown, labels, streams) if averaging is None else averaged(
            loss, shown, labels, streams, 0, averaging, 8
        )  # fmt: skip
        (slope,) = torch.autograd.grad(found.sum(), shown)
        return float(slope.std() / slope.mean().abs())

    assert roughness(Averaging(kind, 64)) < roughness(None) / 2


def descent(**slots):
    def decode(latents, labels):
        del labels
        return latents[:, None].sigmoid()

    def identity(images, labels):
        return (images.mean(dim=(1, 2, 3)) - 0.1 * labels).square() + images.square().mean(dim=(1, 2, 3))

    return Descent(**{"stage": "x", "steps": 4, "decode": decode, "identity": identity, "optimiser": Adam(0.1)} | slots)


def search(plan, run, rows=5):
    labels, restarts = torch.arange(rows), torch.zeros(rows, dtype=torch.long)
    streams = run.streams(labels, restarts)
    return plan.search(streams.normal("start", 6, 6), labels, streams, run)


@pytest.mark.parametrize("kind", KINDS)
def test_every_search_averages_when_its_run_says_so(kind):
    plain, views = Run(), Run(averaging=Averaging(kind, COUNT))
    own = (lambda images, streams, step: images + 0.1 * streams.normal("own", 1, 6, 6, step=step),)
    paths = [search(descent(views=own), run).latents for run in (plain, views)]
    assert not torch.allclose(*paths, atol=1e-4)
    assert views.work["target_forward"] == COUNT * plain.work["target_forward"] == views.work["target_backward"]
    assert views.work["generator_forward"] == plain.work["generator_forward"]


@pytest.mark.parametrize("kind", KINDS)
def test_neither_batch_size_nor_neighbours_matter(kind):
    averaging, noisy = Averaging(kind, COUNT), (lambda x, s, t: x + 0.1 * s.normal("own", 1, 6, 6, step=t),)
    plan = descent(views=noisy, steps=8)
    whole = search(plan, Run(batch_size=64, averaging=averaging)).latents
    for run, rows in ((Run(batch_size=2, averaging=averaging), 5), (Run(batch_size=7, averaging=averaging), 2)):
        torch.testing.assert_close(search(plan, run, rows).latents, whole[:rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("batch_size", "largest"), [(2, 2), (5, 5), (12, 10), (64, 30)])
def test_the_target_never_sees_more_images_at_once_than_the_batch_size(batch_size, largest):
    seen = []

    def identity(images, labels):
        seen.append(len(labels))
        return images.mean(dim=(1, 2, 3))

    search(descent(identity=identity, steps=1), Run(batch_size=batch_size, averaging=Averaging("paa", COUNT)))
    assert max(seen) == largest and sum(seen) == 5 * COUNT


def test_out_of_memory_halves_what_the_target_sees():
    def tight(images, labels):
        if len(labels) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.mean(dim=(1, 2, 3)).square()

    averaging = Averaging("taa", COUNT)
    found = search(descent(identity=tight), Run(batch_size=12, averaging=averaging))
    roomy = search(descent(identity=lambda x, _: x.mean(dim=(1, 2, 3)).square()), Run(averaging=averaging))
    torch.testing.assert_close(found.latents, roomy.latents, atol=1e-6, rtol=0)


def test_an_erased_view_has_one_square_as_the_defense_makes_it():
    images = torch.full((200, 1, 16, 16), 2.0)
    streams = Streams.of(0, torch.arange(200), torch.zeros(200, dtype=torch.long))
    erased = (VIEWS["erase"](images, streams, 0) != 2)[:, 0]
    shares = erased.float().mean(dim=(1, 2))
    assert 0.08 < shares.min() < 0.16 and 0.34 < shares.max() < 0.43  # 0.1 to 0.4, sides rounded to pixels
    assert torch.equal(erased.any(dim=2).sum(dim=1) * erased.any(dim=1).sum(dim=1), erased.sum(dim=(1, 2)))
    assert not torch.equal(erased, (VIEWS["erase"](images, streams, 1) != 2)[:, 0])


def test_a_loss_that_breaks_in_one_view_is_noticed():
    from mi_audit.core.errors import Diverged

    def breaks(images, streams, step):
        return images / (streams.keys != streams.keys.max()).float()[:, None, None, None]

    with pytest.raises(Diverged, match="step 0"):
        search(descent(views=(breaks,)), Run(averaging=Averaging("paa", COUNT)))


def test_published_answers_need_enough_views():
    assert Averaging("taa", 20).adaptive_to == ("bido", "tldmi", "dp-sgd", "mid")
    assert Averaging("paa", 20).adaptive_to == ("atat", "mid") and "midre" in Averaging("erase", 20).adaptive_to
    assert Averaging("taa", 19).adaptive_to == Averaging("erase", 19).adaptive_to == ()
    with pytest.raises(ConfigError, match="at least 2 views"):
        Averaging("taa", 1)


def test_a_turn_stays_within_five_degrees_and_crops_keep_four_fifths_of_the_area():
    crop, turn = VIEWS["taa"].views
    streams = Streams.of(0, torch.arange(500), torch.zeros(500, dtype=torch.long))
    _, _, width, height = crop.boxes(streams, 0).unbind(dim=1)
    assert (width * height).min() >= 0.8 - 1e-6 and (width > 0).all()
    assert ((width / height).log().abs() <= math.log(1 / 0.9) + 1e-6).all()
    assert turn.degrees == 5 and turn.share == 1
