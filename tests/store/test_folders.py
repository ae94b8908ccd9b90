import os
import zipfile

import pytest

from mi_audit.core.errors import DataError
from mi_audit.store import folders
from mi_audit.store.folders import read_folder, read_zip
from tests.store.pictures import image_folder, png, zipped


def test_classes_are_in_lexical_order_and_other_files_ignored(tmp_path):
    root = image_folder(tmp_path, ("10", "2", "1"), per_class=1)
    for name in ("index.csv", ".DS_Store", "1/notes.txt", "2/._00.png"):
        (root / name).write_text("no image")
    for hidden in (".git/a.png", "__MACOSX/a.png"):
        (root / hidden).parent.mkdir()
        (root / hidden).write_bytes(png(0))
    source = read_folder(str(root), labelled=True)
    assert source.classes == ("1", "10", "2")
    assert [(entry.name, entry.label) for entry in source.entries] == [
        ("1/00.png", 0),
        ("10/00.png", 1),
        ("2/00.png", 2),
    ]
    assert source.entries[1].read() == (root / "10" / "00.png").read_bytes()


def test_images_anywhere_below_a_class_count(tmp_path):
    root = image_folder(tmp_path, ("a", "b"), per_class=1)
    (root / "a" / "deeper" / "still").mkdir(parents=True)
    (root / "a" / "deeper" / "still" / "x.JPG").write_bytes(png(1, kind="JPEG"))
    assert [entry.name for entry in read_folder(str(root), labelled=True).entries] == [
        "a/00.png",
        "a/deeper/still/x.JPG",
        "b/00.png",
    ]


@pytest.mark.parametrize("wrapper", ["images", "top/images", "train"])
def test_single_folders_around_the_classes_are_looked_through(tmp_path, wrapper):
    image_folder(tmp_path / wrapper, ("a", "b"), per_class=1)
    source = read_folder(str(tmp_path), labelled=True)
    assert source.classes == ("a", "b")
    assert [entry.name for entry in source.entries] == [f"{wrapper}/a/00.png", f"{wrapper}/b/00.png"]
    assert {entry.part for entry in source.entries} == {"train"}


def test_parts_come_in_order_even_below_a_wrapper(tmp_path):
    for part in ("test", "train", "val"):
        image_folder(tmp_path / "top" / part, ("a", "b"), per_class=1)
    source = read_folder(str(tmp_path), labelled=True)
    assert [entry.part for entry in source.entries] == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    assert source.entries[-1].name == "top/test/b/00.png"


def test_classes_that_happen_to_be_called_train_and_bus_are_no_division(tmp_path):
    root = image_folder(tmp_path, ("train", "bus"), per_class=1)
    assert read_folder(str(root), labelled=True).classes == ("bus", "train")


def test_folder_without_classes_is_one_class_of_public_data(tmp_path):
    for row in range(3):
        (tmp_path / f"{row}.png").write_bytes(png(row))
    source = read_folder(str(tmp_path), labelled=False)
    assert source.classes == ("all",)
    assert [entry.label for entry in source.entries] == [0, 0, 0]
    with pytest.raises(DataError, match="expected class folders, got images only"):
        read_folder(str(tmp_path), labelled=True)


@pytest.mark.parametrize("ignored", [(), ("notes.txt", ".hidden.png")])
def test_class_folder_without_images_is_named(tmp_path, ignored):
    root = image_folder(tmp_path, ("a", "b"))
    (root / "c").mkdir()
    for name in ignored:
        (root / "c" / name).write_text("no image")
    with pytest.raises(DataError, match=rf"expected images in the class folder {root}/c, got none"):
        read_folder(str(root), labelled=False)


def test_image_beside_the_class_folders_is_named(tmp_path):
    root = image_folder(tmp_path, ("a", "b"))
    (root / "stray.png").write_bytes(png(0))
    with pytest.raises(DataError, match=r"got .*/stray\.png beside them; move or remove it"):
        read_folder(str(root), labelled=False)


def test_class_that_is_tested_but_never_taught_is_named(tmp_path):
    image_folder(tmp_path / "train", ("a", "b"))
    image_folder(tmp_path / "test", ("a", "b", "c"))
    with pytest.raises(DataError, match=r"got the class 'c' only in test/ .*test/c/00\.png"):
        read_folder(str(tmp_path), labelled=True)


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = image_folder(tmp_path / "data", ("a", "b"), per_class=1)
    image_folder(tmp_path / "elsewhere", ("c",), per_class=1)
    (root / "c").symlink_to(tmp_path / "elsewhere" / "c")
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "self").symlink_to(root / "b")
    assert [entry.name for entry in read_folder(str(root), labelled=True).entries] == [
        "a/00.png",
        "b/00.png",
        "c/00.png",
    ]


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    root = image_folder(tmp_path, ("a", "b"))
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match=r"expected a readable folder, got .*/b: Permission denied"):
        read_folder(str(root), labelled=True)


def test_unreadable_file_is_named(tmp_path):
    root = image_folder(tmp_path, ("a", "b"))
    (root / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    entry = next(entry for entry in read_folder(str(root), labelled=True).entries if entry.name == "a/gone.png")
    with pytest.raises(DataError, match=r"expected a readable image, got .*/a/gone\.png: No such file"):
        entry.read()


def test_zip_looks_like_its_folder(tmp_path):
    root = image_folder(tmp_path / "data", ("a", "b"), per_class=2)
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._00.png").write_bytes(b"junk")
    source = read_zip(str(zipped(root, tmp_path / "data.zip")), labelled=True)
    assert source.classes == ("a", "b")
    assert [entry.name for entry in source.entries] == [f"data/{c}/0{row}.png" for c in "ab" for row in range(2)]
    assert source.entries[3].read() == (root / "b" / "01.png").read_bytes()


def test_empty_class_in_a_zip_is_named(tmp_path):
    root = image_folder(tmp_path / "data", ("a", "b"))
    (root / "c").mkdir()
    with pytest.raises(DataError, match=r"class folder .*data\.zip/data/c, got none"):
        read_zip(str(zipped(root, tmp_path / "data.zip")), labelled=True)


@pytest.mark.parametrize("name", ["../a/x.png", "a/../../x.png", "/a/x.png", "C:/a/x.png", "a\\..\\x.png"])
def test_names_that_leave_the_zip_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, png(0))
    with pytest.raises(DataError, match="expected names below the zip"):
        read_zip(str(tmp_path / "bad.zip"), labelled=False)


def test_huge_member_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "FILE_LIMIT", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.png", bytes(1001))
    with pytest.raises(DataError, match=r"got a/x\.png in .*bomb\.zip; remove it"):
        read_zip(str(tmp_path / "bomb.zip"), labelled=False)


def test_encrypted_zip_is_refused(tmp_path):
    path = zipped(image_folder(tmp_path / "data", ("a", "b")), tmp_path / "data.zip")
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02")  # the last entry of the directory; its flags are at byte 8
    data[start + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="expected a zip without a password"):
        read_zip(str(path), labelled=True)


def test_damaged_member_is_named(tmp_path):
    root = image_folder(tmp_path / "data", ("a", "b"), per_class=1)
    path = zipped(root, tmp_path / "data.zip")
    content = (root / "b" / "00.png").read_bytes()
    path.write_bytes(path.read_bytes().replace(content, content[:-1] + b"?"))
    entry = read_zip(str(path), labelled=True).entries[1]
    with pytest.raises(DataError, match=r"expected an intact zip, got a damaged data/b/00\.png in .*data\.zip"):
        entry.read()
