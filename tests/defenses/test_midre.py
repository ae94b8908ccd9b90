import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_audit.core.defense import Defense, Moment
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.midre import MIDRE
from mi_audit.nn.erasing import erase

PAPER = torch.tensor([0.485, 0.456, 0.406]) * 0.5 + 0.5


def moment(seed=0):
    return Moment("main", 0, 1, torch.Generator().manual_seed(seed))


def transform(defense, images, seed=0):
    return defense.transform(images, torch.zeros(len(images), dtype=torch.int64), moment(seed))


@settings(deadline=None, max_examples=40)
@given(low=st.floats(0.05, 0.8), spread=st.floats(0, 0.15), size=st.integers(4, 40), channels=st.sampled_from([1, 3]))
def test_erases_one_square_of_the_share_that_was_asked_for(low, spread, size, channels):
    images = torch.full((8, channels, size, size), 2.0)  # a colour that no fill has
    erased = (transform(MIDRE(low=low, high=low + spread), images) != 2).all(dim=1)
    rows, columns = erased.any(dim=2).sum(dim=1), erased.any(dim=1).sum(dim=1)
    assert torch.equal(rows, columns) and torch.equal(rows * columns, erased.sum(dim=(1, 2)))
    inside = erased.float()
    assert torch.equal(inside.diff(dim=1).abs().amax(dim=2).sum(dim=1) <= 2, torch.ones(8, dtype=torch.bool))
    assert (rows >= size * math.sqrt(low) - 0.51).all() and (rows <= size * math.sqrt(low + spread) + 0.51).all()


def test_the_square_by_hand():
    images = torch.zeros(2, 1, 4, 4)
    uniform = torch.tensor([[0.5, 0.0, 0.99], [0.5, 0.5, 0.0]])  # a quarter of 16 pixels: side 2, at 3 places each way
    got = erase(images, uniform, 0.1, 0.4, torch.ones(1))[:, 0]
    expected = torch.zeros(2, 4, 4)
    expected[0, :2, 2:] = 1
    expected[1, 1:3, :2] = 1
    assert torch.equal(got, expected)


def test_shares_and_places_are_uniform():
    images = torch.full((4000, 3, 20, 20), 2.0)
    erased = (transform(MIDRE(), images) != 2).all(dim=1)
    shares = erased.float().mean(dim=(1, 2))
    assert float(shares.mean()) == pytest.approx(0.25, abs=0.01)
    assert float((shares < 0.2).float().mean()) == pytest.approx(1 / 3, abs=0.08)  # sides are whole pixels
    assert float(shares.min()) >= 0.09 and float(shares.max()) <= 0.43
    often = erased.float().mean(dim=0)
    assert torch.allclose(often, often.flip(0), atol=0.05) and torch.allclose(often, often.flip(1), atol=0.05)
    assert torch.allclose(often, often.T, atol=0.05)
    assert float(often[0, 0]) > 0.003 and float(often[-1, -1]) > 0.003


def test_every_image_has_its_own_square_and_its_other_pixels():
    images = torch.rand(16, 3, 12, 12)
    got = transform(MIDRE(), images)
    changed = (got != images).any(dim=1)
    assert len({tuple(row.flatten().tolist()) for row in changed}) > 8
    assert torch.equal(got[~changed[:, None].expand_as(got)], images[~changed[:, None].expand_as(images)])


@pytest.mark.parametrize(("fill", "colour"), [("paper", PAPER), ("neutral", torch.full((3,), 0.5))])
def test_the_fill_in_the_scale_of_the_images(fill, colour):
    images = torch.full((4, 3, 8, 8), 2.0)
    got = transform(MIDRE(fill=fill), images)
    erased = (got != 2).all(dim=1)
    assert torch.allclose(got.permute(0, 2, 3, 1)[erased], colour, atol=1e-6) and erased.any()
    assert (got.permute(0, 2, 3, 1)[~erased] == 2).all()
    grey = transform(MIDRE(fill=fill), images[:, :1])
    assert float(grey.min()) == pytest.approx(float(colour @ torch.tensor([0.299, 0.587, 0.114])), abs=1e-6)


def test_draws_from_the_random_numbers_of_the_step_alone():
    images = torch.rand(4, 3, 8, 8)
    torch.manual_seed(1)
    first = transform(MIDRE(), images)
    torch.manual_seed(2)
    assert torch.equal(transform(MIDRE(), images), first)
    assert not torch.equal(transform(MIDRE(), images, seed=1), first)


def test_keeps_type_and_memory_layout():
    images = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    got = transform(MIDRE(), images)
    assert got.is_contiguous(memory_format=torch.channels_last) and got.dtype == torch.float32


def test_squares_of_long_images_end_at_the_shorter_side():
    images = torch.full((6, 1, 4, 16), 2.0)
    erased = (transform(MIDRE(low=0.4, high=0.8), images) != 2)[:, 0]
    assert (erased.sum(dim=(1, 2)) == 16).all()


def test_changes_nothing_but_the_training_images():
    own = {name for name in vars(MIDRE) if name in vars(Defense) and callable(getattr(MIDRE, name))}
    assert own & {"edits", "objective", "term", "freeze_layers", "phases", "companion"} == set()


@pytest.mark.parametrize("settings", [{"low": 0.0}, {"high": 1.0}, {"low": 0.5, "high": 0.4}], ids=str)
def test_refuses_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match="expected"):
        MIDRE(**settings)
