import io
import stat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mi_audit.core.errors import Diverged, StorageError
from mi_audit.store.images import contact_sheet, quantise, read_png, write_png


def one(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


def test_quantise_clamps_and_rounds_half_to_even():
    assert quantise(one(-1.0, 0.5 / 255, 1.5 / 255, 1.0, 2.0)).flatten().tolist() == [0, 0, 2, 255, 255]


def test_quantise_refuses_nan():
    with pytest.raises(Diverged, match="got NaN"):
        quantise(one(0.5, float("nan")))


@given(st.integers(0, 255))
def test_every_stored_level_survives(level):
    assert quantise(one(level / 255)).flatten().tolist() == [level]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_returns_the_same_bits_and_only_to_its_owner(tmp_path, channels):
    pixels = torch.arange(channels * 4 * 5).view(channels, 4, 5).to(torch.uint8)
    write_png(tmp_path / "picture.png", pixels)
    assert torch.equal(read_png(tmp_path / "picture.png"), pixels)
    assert stat.S_IMODE((tmp_path / "picture.png").stat().st_mode) == 0o600


def test_equal_pixels_give_equal_files(tmp_path):
    pixels = torch.full((3, 6, 6), 9, dtype=torch.uint8)
    write_png(tmp_path / "a.png", pixels)
    write_png(tmp_path / "b.png", pixels.clone())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_damaged_png_is_named(tmp_path):
    write_png(tmp_path / "x.png", torch.zeros(1, 40, 40, dtype=torch.uint8))
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:50])
    with pytest.raises(StorageError, match=r"expected a PNG picture, got a damaged file .*x\.png"):
        read_png(tmp_path / "x.png")


def test_png_of_another_mode_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 2)).save(buffer, "PNG")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    with pytest.raises(StorageError, match="got mode RGBA"):
        read_png(tmp_path / "x.png")


def test_contact_sheet_fills_rows_first_and_the_rest_with_white():
    pixels = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 1, 2)
    assert contact_sheet(pixels, columns=2).tolist() == [[[0, 0, 1, 1], [2, 2, 255, 255]]]
