import io

import numpy as np
import pytest
from PIL import Image

from mi_audit.core.errors import DataError
from mi_audit.store import pictures
from mi_audit.store.entries import Entry, Source
from mi_audit.store.pictures import channels_of, decode, square, survey, upright
from tests.store.pictures import png


def source(*contents):
    entries = tuple(
        Entry(f"{row}.png", 0, "train", lambda content=content: content) for row, content in enumerate(contents)
    )
    return Source("set", ("a",), entries)


def stored(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def decoded(content, size, channels):
    found = source(content)
    return np.concatenate(list(decode(found, found.entries, size, channels)))[0]


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("I;16", 1), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_channels_are_told_by_mode(mode, channels):
    assert channels_of(Image.new(mode, (2, 2)), "x") == channels


def test_palette_of_greys_is_grey():
    image = Image.new("P", (2, 2))
    image.putpalette([0, 0, 0, 9, 9, 9])
    assert channels_of(image, "x") == 1
    image.putpalette([0, 0, 0, 9, 9, 8])
    assert channels_of(image, "x") == 3


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused(mode):
    with pytest.raises(DataError, match=r"expected 8 or 16 bits per pixel, got 32 in x; convert"):
        channels_of(Image.new(mode, (2, 2)), "x")


def test_sixteen_bits_are_scaled_not_clipped():
    image = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16))
    assert np.asarray(upright(image, "x")).tolist() == [[0, 1, 128, 255]]
    assert decoded(stored(image.resize((4, 4))), 4, 1)[0, 0].tolist() == [0, 1, 128, 255]


def test_square_of_the_middle_is_reduced_with_antialiasing():
    checks = np.indices((8, 16)).sum(0) % 2 * 200
    checks[:, :4] = checks[:, 12:] = 7
    reduced = np.asarray(square(Image.fromarray(checks.astype(np.uint8)), 2))
    assert reduced.shape == (2, 2)
    assert abs(reduced.astype(int) - 88).max() < 25  # nearest neighbour would give 0 or 200


def test_images_of_the_right_size_keep_their_bits():
    content = png(3, size=(8, 8))
    assert np.array_equal(decoded(content, 8, 3), np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1))


def test_arrays_and_files_decode_alike():
    content = png(3, size=(12, 9))
    pixels = np.array(Image.open(io.BytesIO(content)))
    assert np.array_equal(decoded(content, 5, 3), decoded(pixels, 5, 3))


def test_colour_becomes_luminance():
    assert decoded(np.full((2, 2, 3), (255, 0, 0), dtype=np.uint8), 2, 1).flatten().tolist() == [76] * 4


def test_survey_reads_headers_in_order(monkeypatch):
    monkeypatch.setattr(pictures, "CHUNK", 2)
    facts = survey(source(*(png(row, "L" if row % 2 else "RGB", (row + 1, 5)) for row in range(5))))
    assert [(fact.width, fact.height, fact.channels) for fact in facts] == [
        (row + 1, 5, 1 if row % 2 else 3) for row in range(5)
    ]
    assert len({fact.sha256 for fact in facts}) == 5


def test_decoded_blocks_are_in_order(monkeypatch):
    monkeypatch.setattr(pictures, "CHUNK", 2)
    found = source(*(np.full((2, 2), row, dtype=np.uint8) for row in range(5)))
    blocks = list(decode(found, found.entries, 2, 1))
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert np.concatenate(blocks)[:, 0, 0, 0].tolist() == list(range(5))


def test_decompression_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(pictures, "PIXEL_LIMIT", 99)
    with pytest.raises(DataError, match=r"expected at most 99 pixels, got 10 x 10 in set/0\.png"):
        survey(source(png(0, size=(10, 10))))


def test_real_decompression_bomb_is_refused():
    huge = stored(Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match=r"set/0\.png"):
        survey(source(huge))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_common_formats_are_read(kind):
    content = stored(Image.new("RGB", (6, 6), (250, 10, 10)), kind)
    assert abs(decoded(content, 6, 3)[:, 3, 3].astype(int) - [250, 10, 10]).max() <= 8


def test_formats_that_run_programs_are_refused():
    with pytest.raises(DataError, match=r"set/0\.png \(the file is not an image that can be read\)"):
        survey(source(stored(Image.new("RGB", (6, 6)), "EPS")))


def test_damage_behind_an_intact_header_is_named():
    content = png(0, size=(64, 64))
    found = source(content[: len(content) // 2])
    survey(found)
    with pytest.raises(DataError, match=r"expected an intact image, got set/0\.png"):
        list(decode(found, found.entries, 8, 3))
