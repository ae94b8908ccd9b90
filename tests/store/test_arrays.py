import numpy as np
import pytest

from mi_audit.core.errors import DataError
from mi_audit.store.arrays import read_digits, read_npz, to_bytes

GREY = np.arange(4 * 2 * 5, dtype=np.uint8).reshape(4, 2, 5)


def save(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return str(tmp_path / "data.npz")


def rows(source):
    return [(entry.part, source.classes[entry.label], entry.read()[0].flatten()[0]) for entry in source.entries]


@pytest.mark.parametrize("image_key", ["images", "x", "X"])
@pytest.mark.parametrize("label_key", ["labels", "y", "subject"])
def test_names_in_common_use_are_understood(tmp_path, image_key, label_key):
    source = read_npz(save(tmp_path, **{image_key: GREY, label_key: [7, 5, 7, 5]}), labelled=True)
    assert rows(source) == [("train", "5", 10), ("train", "5", 30), ("train", "7", 0), ("train", "7", 20)]


def test_mask_divides(tmp_path):
    path = save(tmp_path, images=GREY, subject=[0, 1, 0, 1], is_test=[False, True, True, False])
    assert rows(read_npz(path, labelled=True)) == [
        ("train", "0", 0),
        ("train", "1", 30),
        ("test", "0", 20),
        ("test", "1", 10),
    ]


@pytest.mark.parametrize("spelling", ["x_{}", "images_{}", "{}_images"])
def test_arrays_per_part_divide(tmp_path, spelling):
    arrays = {spelling.format("test"): GREY[:1], spelling.format("train"): GREY[1:3], spelling.format("val"): GREY[3:]}
    labels = {"y_train": [[1], [0]], "test_labels": [1], "y_val": [0]}
    source = read_npz(save(tmp_path, **arrays, **labels), labelled=True)
    assert rows(source) == [("train", "0", 20), ("train", "1", 10), ("val", "0", 30), ("test", "1", 0)]


def test_class_names_may_come_along(tmp_path):
    path = save(tmp_path, images=GREY, labels=[0, 1, 0, 1], classes=["cat", "dog"])
    assert read_npz(path, labelled=True).classes == ("cat", "dog")
    path = save(tmp_path, images=GREY, labels=[0, 1, 0, 1], classes=["cat"])
    with pytest.raises(DataError, match="expected 2 class names"):
        read_npz(path, labelled=True)


@pytest.mark.parametrize(("axis", "shape"), [(1, (4, 3, 2, 5)), (3, (4, 2, 5, 3))])
def test_channels_may_come_first_or_last(tmp_path, axis, shape):
    images = np.stack([GREY, GREY + 50, GREY + 100], axis=axis)
    assert images.shape == shape
    (entry, *_) = read_npz(save(tmp_path, x=images), labelled=False).entries
    assert entry.read()[1, 4].tolist() == [9, 59, 109]


def test_single_channel_axis_is_dropped(tmp_path):
    for axis in (1, 3):
        (entry, *_) = read_npz(save(tmp_path, x=np.expand_dims(GREY, axis)), labelled=False).entries
        assert entry.read().tolist() == GREY[0].tolist()


def test_images_without_labels_are_public_data_only(tmp_path):
    for arrays in ({"images": GREY}, {"x_train": GREY[:2], "y_train": [1, 2], "x_test": GREY[2:]}):
        path = save(tmp_path, **arrays)
        source = read_npz(path, labelled=False)
        assert source.classes == ("all",)
        assert len(source.entries) == 4
        with pytest.raises(DataError, match="expected an array `labels` beside the images"):
            read_npz(path, labelled=True)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weights": GREY}, r"expected arrays `images` and `labels`.* got \['weights'\]"),
        ({"images": GREY, "labels": [0, 1]}, r"expected one label per image, got 4 images .*\[images\]"),
        ({"images": GREY, "labels": [0] * 4, "is_test": [True]}, "expected `is_test` per image"),
        ({"images": GREY[0]}, r"expected images of shape \(n, h, w\)"),
        ({"images": np.zeros((2, 4, 5, 6), np.uint8)}, r"expected images of shape \(n, h, w\)"),
        ({"images": GREY * 1.5}, r"expected pixels in \[0, 1\], got \[0, 58\.5\] in .*\[images\]; rescale them"),
        ({"images": np.full((1, 2, 2), np.nan)}, r"expected pixels in \[0, 1\], got \[nan, nan\]"),
        ({"images": np.full((1, 2, 2), 300)}, r"expected pixels in \[0, 255\], got \[300, 300\]"),
        ({"images": np.zeros((1, 2, 2), bool)}, "expected pixels as uint8 or as floats"),
        ({"images": np.array([{"a": 1}])}, r"expected an \.npz of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_explained(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        read_npz(save(tmp_path, **arrays), labelled=False)


def test_cut_off_file_is_named(tmp_path):
    path = save(tmp_path, images=GREY)
    data = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"expected an \.npz of plain arrays, got .*data\.npz"):
        read_npz(path, labelled=False)


def test_floats_are_rounded_to_bytes():
    assert to_bytes("x", np.array([[0.0, 0.5, 1.0]])).tolist() == [[0, 128, 255]]
    assert to_bytes("x", np.array([[0, 17, 255]], dtype=np.int64)).tolist() == [[0, 17, 255]]


def test_digits_are_sorted_by_class():
    labels = [entry.label for entry in read_digits("digits").entries]
    assert labels == sorted(labels)
    assert labels.count(3) == 183
