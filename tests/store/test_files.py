import errno
import os
import resource
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.core.errors import StorageError
from mi_audit.store.files import canonical_json, digest, hash_file, make_folder, read_file, replacing, write_atomic


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_content_arrives_in_a_new_folder(tmp_path):
    write_atomic(tmp_path / "new" / "file", b"content")
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_private_file_is_readable_by_its_owner_only(tmp_path):
    before = os.umask(0)
    try:
        write_atomic(tmp_path / "private", b"", private=True)
        write_atomic(tmp_path / "open", b"")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "private") == 0o600
    assert mode_of(tmp_path / "open") == 0o666


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_earlier_file_and_leaves_no_part(tmp_path, monkeypatch, call):
    write_atomic(tmp_path / "file", b"earlier")

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match=r"expected to write .*file, got: No space left on device; free disk space"):
        write_atomic(tmp_path / "file", b"later")
    assert (tmp_path / "file").read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_write_that_the_system_cuts_off_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="expected to write"):
            write_atomic(tmp_path / "file", bytes(300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_interrupted_block_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_path_through_a_file_is_explained(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="a part of this one is a file"):
        write_atomic(tmp_path / "file" / "inside", b"")
    with pytest.raises(StorageError, match="expected to create"):
        make_folder(tmp_path / "file" / "inside")


@pytest.mark.parametrize("reader", [read_file, hash_file])
def test_missing_file_is_named(tmp_path, reader):
    with pytest.raises(StorageError, match=r"expected to read .*absent"):
        reader(tmp_path / "absent")


def test_hash_of_a_file_is_the_published_one_of_abc(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert hash_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@dataclass(frozen=True)
class Setting:
    steps: int
    path: Path


def test_canonical_json_spells_every_allowed_value():
    value = {"b": Setting(3, Path("x/y")), "a": (1, 2.5, None), "c": frozenset({"z", "y"}), "d": b"\x0f"}
    assert canonical_json(value) == '{"a":[1,2.5,null],"b":{"path":"x/y","steps":3},"c":["y","z"],"d":"0f"}'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_numbers_json_has_not(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


def test_canonical_json_refuses_objects():
    with pytest.raises(TypeError, match="expected a JSON value, got object"):
        canonical_json(object())


@given(st.dictionaries(st.text(), st.integers()))
def test_digest_does_not_depend_on_the_order_of_keys(facts):
    assert digest(facts) == digest(dict(reversed(facts.items())))


def test_digest_keeps_parts_apart():
    assert len({digest("ab", "c"), digest("a", "bc"), digest(["ab", "c"]), digest("abc")}) == 4
