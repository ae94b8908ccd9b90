import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mi_audit.core.dataset import Dataset
from mi_audit.store import overlap as module
from mi_audit.store.datasets import load_dataset
from mi_audit.store.overlap import copies, overlap


def pictures(count, name, size=32, channels=3, seed=0):
    """Smooth random pictures: noise of 6 x 6 enlarged, so that copies survive compression as photographs do."""
    noise = torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    pixels = (torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
    files = tuple(f"{name}/{row}.png" for row in range(count))
    return Dataset(name, pixels, torch.zeros(count, dtype=torch.int64), ("all",), name, files)


def jpeg(pixels, side):
    image, buffer = Image.fromarray(pixels.permute(1, 2, 0).numpy()), io.BytesIO()
    image.resize((side, side)).resize(image.size).save(buffer, "JPEG", quality=50)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def test_other_pictures_are_no_overlap():
    found = overlap(pictures(40, "private"), pictures(60, "public", seed=1))
    assert found == (
        "none found among 40 x 60 images (exact and near-identical pixels; "
        "the same person in another picture is not detected)"
    )


def test_identical_pictures_are_counted_and_named():
    private, public = pictures(10, "private"), pictures(9, "public", seed=1)
    public.pixels[4] = private.pixels[7]
    found = overlap(private, public)
    assert found.startswith("1 of 10 private images are also in the public data (1 identical, 0 nearly identical)")
    assert "such as private/7.png = public/4.png; remove them" in found


@pytest.mark.parametrize("side", [16, 24, 32])
def test_scaled_and_recompressed_copies_are_found(monkeypatch, side):
    monkeypatch.setattr(module, "CHUNK", 4)
    private, public = pictures(10, "private"), pictures(9, "public", seed=1)
    for row in range(5):
        public.pixels[row] = jpeg(private.pixels[2 * row], side)
    found = overlap(private, public)
    assert found.startswith("5 of 10 private images are also in the public data (0 identical, 5 nearly identical)")
    assert "such as private/0.png ~ public/0.png, private/2.png ~ public/1.png, private/4.png ~ public/2.png;" in found


def test_copies_are_found_across_sizes_and_colours():
    private = pictures(6, "private", size=64)
    grey = private.pixels.float().mean(dim=1, keepdim=True)
    small = torch.nn.functional.interpolate(grey, (32, 32), mode="bilinear", antialias=True)
    public = replace(pictures(6, "public", channels=1), pixels=small.round().to(torch.uint8))
    assert overlap(private, public).startswith("6 of 6 private images")


def test_one_private_picture_counts_once():
    private, public = pictures(3, "private"), pictures(4, "public", seed=1)
    public.pixels[:3] = private.pixels[1]
    public.pixels[2, 0, 0, 0] ^= 1
    assert overlap(private, public).startswith("1 of 3 private images")


def test_flat_pictures_are_no_copies_unless_equal():
    flat = torch.full((2, 3, 32, 32), 40, dtype=torch.uint8)
    private = replace(pictures(2, "private"), pixels=flat)
    assert overlap(private, replace(pictures(2, "public"), pixels=flat + 1)).startswith("none found")
    assert overlap(private, replace(pictures(2, "public"), pixels=flat.clone())).startswith("2 of 2")


def test_the_same_folder_is_said_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = overlap(pictures(3, "faces"), pictures(3, str(tmp_path / "faces")))
    assert found == f"the private and the public data are the same: {tmp_path}/faces; choose other public images"


def test_other_digits_are_no_copies():
    assert overlap(load_dataset("digits:0-4", 32, 1), load_dataset("digits:5-9", 32, 1)).startswith("none found")


def test_arrays_are_named_by_row():
    private, public = (replace(pictures(2, name), files=()) for name in ("private", "public"))
    assert "private[0] = public[0]" in overlap(private, public)


def test_all_copies_of_a_picture_are_named_in_order():
    ours, theirs = pictures(10, "ours"), pictures(3, "theirs", seed=1)
    ours.pixels[7] = theirs.pixels[1]
    ours.pixels[2] = theirs.pixels[1]
    ours.pixels[4] = jpeg(theirs.pixels[0], 24)
    assert copies(ours, theirs).tolist() == [2, 4, 7]
    nothing = theirs.select(torch.arange(0))
    assert copies(ours, nothing).tolist() == copies(nothing, ours).tolist() == []
