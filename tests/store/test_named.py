import struct

import numpy as np
import pytest
import timm.data.dataset_factory
from PIL import Image
from torch.utils.data import IterableDataset

from mi_audit.core.errors import DataError
from mi_audit.store.datasets import load_dataset, load_splits
from mi_audit.store.named import read_named


def idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path):
    """The files of MNIST with 40 training and 4 test images, each filled with ten times its class."""
    for part, count in (("train", 40), ("t10k", 4)):
        labels = np.arange(count) % 2
        idx(tmp_path / f"MNIST/raw/{part}-labels-idx1-ubyte", labels)
        idx(tmp_path / f"MNIST/raw/{part}-images-idx3-ubyte", np.tile(10 * labels[:, None, None], (1, 28, 28)))
    return tmp_path


def test_torch_data_set_is_read_through_timm_with_its_division(mnist):
    splits = load_splits(f"torch/mnist@{mnist}", 8, None)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [34, 6, 4]
    assert splits.train.channels == 1
    assert splits.train.classes[:2] == ("0 - zero", "1 - one")
    assert splits.test.pixels[:, 0, 0, 0].tolist() == [0, 0, 10, 10]
    assert splits.test.labels.tolist() == [0, 0, 1, 1]


def test_class_suffix_follows_the_folder(mnist):
    assert len(load_dataset(f"torch/mnist@{mnist}:1", None, None)) == 22


def test_colours_are_not_converted_by_timm(mnist):
    with pytest.raises(DataError, match=r"expected RGB images, got a grey one: torch/mnist@"):
        load_dataset(f"torch/mnist@{mnist}", 8, 3)


@pytest.mark.parametrize("ref", ["torch/mnist", "torch/nothing", "hfds/nobody/nothing@{}"])
def test_absent_data_set_is_explained(tmp_path, monkeypatch, ref):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError, match=r"expected a folder, a zip, .* or a data set that timm can read, got .*NAME@FOLDER"
    ):
        read_named(ref.format(tmp_path), 8, labelled=True)


def test_folder_readers_are_spared_the_detour(tmp_path):
    with pytest.raises(DataError, match=f"expected the folder itself, got .*; write {tmp_path}"):
        read_named(f"torch/image_folder@{tmp_path}", 8, labelled=True)


class Stream(IterableDataset):
    def __init__(self, labels, class_to_idx=None):
        self.labels = labels
        self.class_to_idx = class_to_idx

    def __iter__(self):
        return ((Image.new("RGB", (6, 4), (10 * row, 0, 0)), label) for row, label in enumerate(self.labels))


def served(monkeypatch, **splits):
    def create(_name, *, split, **_options):
        if split not in splits:
            raise ValueError(f"Unknown split {split}")
        return splits[split]

    monkeypatch.setattr(timm.data.dataset_factory, "create_dataset", create)


def test_streams_are_read_once_and_validation_stands_in_for_test(monkeypatch):
    served(monkeypatch, train=Stream([1, 0], {"cat": 0, "dog": 1}), validation=Stream([1]))
    source = read_named("wds/pets", None, labelled=True)
    assert source.classes == ("cat", "dog")
    assert [(entry.part, entry.label, entry.read()[0, 0, 0]) for entry in source.entries] == [
        ("train", 0, 10),
        ("train", 1, 0),
        ("test", 1, 0),
    ]
    assert source.entries[0].read().shape == (4, 6, 3)


def test_size_is_applied_while_reading(monkeypatch):
    served(monkeypatch, train=Stream([0, 1]))
    source = read_named("wds/pets", 2, labelled=True)
    assert source.entries[0].read().shape == (2, 2, 3)
    assert source.classes == ("0", "1")


def test_streams_without_labels_are_public_data_only(monkeypatch):
    served(monkeypatch, train=Stream([-1, -1]))
    assert read_named("wds/pets", 2, labelled=False).classes == ("all",)
    with pytest.raises(DataError, match="expected labels in wds/pets, got none"):
        read_named("wds/pets", 2, labelled=True)


def test_empty_stream_is_explained(monkeypatch):
    served(monkeypatch, train=Stream([]))
    with pytest.raises(DataError, match="expected images in wds/pets, got none"):
        read_named("wds/pets", 2, labelled=False)
