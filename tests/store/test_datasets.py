from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mi_audit.core.errors import DataError
from mi_audit.store import datasets
from mi_audit.store.cache import Cache
from mi_audit.store.datasets import load_dataset, load_splits
from tests.store.pictures import image_folder, png, zipped

DATA = Path(__file__).parents[3] / "shared" / "data"


def put(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def test_digits_are_read_without_any_file():
    whole = load_dataset("digits", 8, None)
    assert (len(whole), whole.channels, whole.size, whole.classes) == (1797, 1, 8, tuple("0123456789"))
    assert whole.pixels.max() == 255
    # the first zero of the set, row by row, in sixteenths: 0 0 5 13 9 1 0 0
    assert whole.pixels[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


@pytest.mark.parametrize(
    ("suffix", "classes"), [("0-4", "01234"), ("5-9", "56789"), ("0,3,7", "037"), ("8-9,1", "189"), ("2", "2")]
)
def test_class_suffix_keeps_names_and_relabels_from_zero(suffix, classes):
    whole, part = load_dataset("digits", 8, 1), load_dataset(f"digits:{suffix}", 8, 1)
    assert part.name == f"digits:{suffix}"
    assert part.classes == tuple(classes)
    for label, name in enumerate(classes):
        assert torch.equal(part.pixels[part.labels == label], whole.pixels[whole.labels == int(name)])


@pytest.mark.parametrize("suffix", ["10", "0-10", "4-0"])
def test_class_suffix_out_of_range_is_explained(suffix):
    with pytest.raises(DataError, match=rf"expected class indices from 0 to 9 .*got :{suffix}"):
        load_dataset(f"digits:{suffix}", 8, 1)


def test_class_suffix_works_on_folders_unless_a_folder_has_that_name(tmp_path):
    image_folder(tmp_path / "data", ("a", "b", "c"))
    assert load_dataset(f"{tmp_path}/data:0,2", 8, 3).classes == ("a", "c")
    image_folder(tmp_path / "data:0,2", ("x", "y"))
    assert load_dataset(f"{tmp_path}/data:0,2", 8, 3).classes == ("x", "y")


def test_splits_are_disjoint_stratified_views_of_one_block(tmp_path):
    root = image_folder(tmp_path / "data", ("a", "b"), per_class=20)
    splits = load_splits(str(root), None, None)
    parts = (splits.train, splits.val, splits.test)
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[14, 14], [3, 3], [3, 3]]
    assert len({file for part in parts for file in part.files}) == 40
    assert len({part.pixels.untyped_storage().data_ptr() for part in parts}) == 1
    for part in parts:
        for file, pixels, label in zip(part.files, part.pixels, part.labels.tolist(), strict=True):
            assert torch.equal(pixels, torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
            assert Path(file).parent.name == part.classes[label]


def test_division_survives_renaming_and_more_classes_but_not_another_seed(tmp_path):
    root = image_folder(tmp_path / "data", ("a", "b"), per_class=20)

    def tested(folder, seed=0):
        test = load_splits(str(folder), None, None, seed=seed).test
        return {pixels.numpy().tobytes() for pixels, label in zip(test.pixels, test.labels, strict=True) if label < 2}

    before = tested(root)
    assert tested(root, seed=1) != before
    for row, path in enumerate(sorted(root.glob("a/*"), reverse=True)):
        path.rename(path.with_name(f"renamed{row}.png"))
    (root / "c").mkdir()
    for row in range(5):
        (root / "c" / f"{row}.png").write_bytes(png(1000 + row))
    assert tested(root.rename(tmp_path / "moved")) == before


def test_own_division_is_honoured_and_val_comes_from_train(tmp_path):
    image_folder(tmp_path / "data" / "train", per_class=20)
    image_folder(tmp_path / "data" / "test", per_class=2)
    splits = load_splits(str(tmp_path / "data"), None, None)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [34, 6, 4]
    assert all("/test/" in file for file in splits.test.files)
    assert not any("/test/" in file for file in splits.train.files + splits.val.files)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_own_validation_images_are_honoured(tmp_path, name):
    image_folder(tmp_path / "data" / "train", per_class=20)
    image_folder(tmp_path / "data" / name, per_class=2)
    splits = load_splits(str(tmp_path / "data"), None, None)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [34, 4, 6]


def test_all_parts_together_make_the_dataset(tmp_path):
    image_folder(tmp_path / "data" / "train", per_class=4)
    image_folder(tmp_path / "data" / "test", per_class=2)
    assert len(load_dataset(str(tmp_path / "data"), None, None)) == 12


def test_too_few_images_to_hold_any_back(tmp_path):
    root = image_folder(tmp_path / "data", per_class=3)
    with pytest.raises(DataError, match="expected a class with 4 images or more"):
        load_splits(str(root), None, None)


def test_single_class_is_no_private_data(tmp_path):
    root = image_folder(tmp_path / "data", ("only",))
    with pytest.raises(DataError, match="expected two classes or more, got only 'only'"):
        load_splits(str(root), None, None)


@pytest.mark.parametrize("loader", [load_splits, load_dataset])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "expected an existing folder"),
        ("file.txt", r"expected a folder, a \.zip or an \.npz, got the file"),
        ("empty", "expected images in .*empty, got none"),
        ("text.zip", r"expected a zip of images, got .*text\.zip"),
        ("text.npz", r"expected an \.npz of plain arrays, got .*text\.npz"),
    ],
)
def test_reference_that_holds_no_data_is_named(tmp_path, loader, name, message):
    (tmp_path / "empty").mkdir()
    for file in ("file.txt", "text.zip", "text.npz"):
        (tmp_path / file).write_text("no images")
    with pytest.raises(DataError, match=message):
        loader(str(tmp_path / name), 8, 3)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"<html>"])
def test_damaged_image_is_named(tmp_path, damage):
    root = image_folder(tmp_path / "data")
    bad = root / "b" / "02.png"
    bad.write_bytes(damage(png(1, size=(40, 40))))
    with pytest.raises(DataError, match=rf"expected an intact image, got {bad} .*; replace or remove it"):
        load_dataset(str(root), 8, None)


def test_image_size_is_taken_from_equal_images_only(tmp_path):
    root = image_folder(tmp_path / "data")
    assert load_dataset(str(root), None, None).size == 8
    (root / "b" / "99.png").write_bytes(png(7, size=(8, 9)))
    with pytest.raises(DataError, match=r"expected images of 8 x 8 pixels .*got 8 x 9 in .*b/99\.png; give --size"):
        load_dataset(str(root), None, None)
    assert load_dataset(str(root), 6, None).size == 6


@pytest.mark.parametrize(
    ("modes", "channels", "message"),
    [
        ("RGB L", None, r"expected RGB images, got a grey one: .*b/00\.png"),
        ("RGB L", 3, r"expected RGB images, got a grey one: .*b/00\.png"),
        ("RGB L", 1, r"expected grey images, got a RGB one: .*a/00\.png"),
        ("L L", 3, r"expected RGB images, got a grey one: .*a/00\.png"),
    ],
)
def test_colours_that_do_not_fit_are_converted_on_request_only(tmp_path, modes, channels, message):
    for name, mode in zip("ab", modes.split(), strict=True):
        image_folder(tmp_path / "data", (name,), mode=mode)
    with pytest.raises(DataError, match=message + "; give --convert-color"):
        load_dataset(str(tmp_path / "data"), 8, channels)
    assert load_dataset(str(tmp_path / "data"), 8, channels, convert_color=True).channels == (channels or 3)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_channels_are_those_of_the_images(tmp_path, mode, channels):
    assert load_dataset(str(image_folder(tmp_path / "data", mode=mode)), 8, None).channels == channels


def test_grey_turned_to_rgb_has_three_equal_channels(tmp_path):
    root = str(image_folder(tmp_path / "data", mode="L"))
    grey, rgb = load_dataset(root, 8, 1), load_dataset(root, 8, 3, convert_color=True)
    assert torch.equal(rgb.pixels, grey.pixels.expand(-1, 3, -1, -1))


def test_fingerprint_depends_on_content_names_and_reading_only(tmp_path):
    root = image_folder(tmp_path / "data")
    prints = [load_dataset(str(root), 8, 3).fingerprint]
    moved = root.rename(tmp_path / "moved")
    assert load_dataset(str(moved), 8, None).fingerprint == prints[0]
    prints.append(load_dataset(str(moved), 6, 3).fingerprint)
    prints.append(load_dataset(str(moved), 8, 1, convert_color=True).fingerprint)
    (moved / "a" / "00.png").rename(moved / "a" / "98.png")
    prints.append(load_dataset(str(moved), 8, 3).fingerprint)
    (moved / "a" / "98.png").write_bytes(png(77))
    prints.append(load_dataset(str(moved), 8, 3).fingerprint)
    splits = load_splits(str(moved), 8, 3)
    prints += [splits.train.fingerprint, splits.val.fingerprint, splits.test.fingerprint]
    assert len(set(prints)) == 8


def test_large_sets_are_decoded_once_into_a_private_map(tmp_path, monkeypatch):
    root, cache = str(image_folder(tmp_path / "data")), Cache(tmp_path / "cache")
    plain = load_splits(root, 8, 3)
    assert load_splits(root, 8, 3, cache=cache).train.pixels.equal(plain.train.pixels)
    assert cache.entries() == ()
    monkeypatch.setattr(datasets, "MAPPED", 100)
    mapped = load_splits(root, 8, 3, cache=cache)
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(mapped, part).pixels, getattr(plain, part).pixels)
    (file,) = cache.root.glob("pixels/*/pixels.u8")
    assert file.stat().st_size == 8 * 3 * 8 * 8
    assert file.stat().st_mode & 0o077 == 0
    mapped.train.pixels.zero_()
    monkeypatch.setattr(datasets, "decode", lambda *_arguments: iter(()))
    assert torch.equal(load_splits(root, 8, 3, cache=cache).train.pixels, plain.train.pixels)


def test_cut_off_map_is_made_again(tmp_path, monkeypatch):
    root, cache = str(image_folder(tmp_path / "data")), Cache(tmp_path / "cache")
    monkeypatch.setattr(datasets, "MAPPED", 100)
    plain = load_dataset(root, 8, 3, cache=cache).pixels.clone()
    (file,) = cache.root.glob("pixels/*/pixels.u8")
    file.write_bytes(b"short")
    assert torch.equal(load_dataset(root, 8, 3, cache=cache).pixels, plain)


def test_zip_reads_like_the_folder_it_holds(tmp_path):
    root = image_folder(tmp_path / "data", per_class=5)
    zipped(root, tmp_path / "data.zip")
    folder, packed = load_splits(str(root), 8, 3), load_splits(str(tmp_path / "data.zip"), 8, 3)
    assert torch.equal(folder.train.pixels, packed.train.pixels)
    assert torch.equal(folder.test.labels, packed.test.labels)
    assert packed.train.files[0].startswith(str(tmp_path / "data.zip/data/a/"))


def test_images_are_upright_squares_of_the_middle(tmp_path):
    stripes = np.zeros((4, 8, 3), dtype=np.uint8)
    stripes[:, 2:6] = (200, 100, 50)
    put(tmp_path / "data" / "a" / "wide.png", Image.fromarray(stripes))
    turned = Image.Exif()
    turned[0x0112] = 6  # stored lying on its left side
    half = np.zeros((4, 4, 3), dtype=np.uint8)
    half[:2] = 255
    put(tmp_path / "data" / "b" / "turned.png", Image.fromarray(half), exif=turned)
    wide, upright = load_dataset(str(tmp_path / "data"), 4, 3).pixels
    assert wide.flatten(1).unique(dim=1).flatten().tolist() == [200, 100, 50]
    assert upright[0].tolist() == [[0, 0, 255, 255]] * 4


@pytest.mark.data
def test_real_faces_keep_their_division():
    path = DATA / "faces-private-lfw-64.zip"
    if not path.exists():
        pytest.skip("the real images are not here")
    splits = load_splits(str(path), 64, 3)
    assert (len(splits.train) + len(splits.val), len(splits.test), len(splits.train.classes)) == (2165, 538, 95)


@pytest.mark.data
def test_real_arrays_are_read():
    path = DATA / "orl-faces-92x112.npz"
    if not path.exists():
        pytest.skip("the real images are not here")
    splits = load_splits(str(path), 64, 1)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [240, 40, 120]
