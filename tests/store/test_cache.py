import os
import stat
import time

import pytest

from mi_audit.core.errors import ConfigError, StorageError
from mi_audit.store.cache import VARIABLE, Cache


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def test_folder_is_created_private_and_keeps_its_content(cache):
    path = cache.folder("prior", "abc")
    (path / "weights").write_bytes(b"12345")
    assert cache.folder("prior", "abc") == path == cache.root / "prior" / "abc"
    assert (path / "weights").read_bytes() == b"12345"
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700


def test_explicit_root_beats_the_variable_which_beats_the_user_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "variable"))
    assert Cache(tmp_path / "given").root == tmp_path / "given"
    assert Cache().root == tmp_path / "variable"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert Cache().root.name == "mi-audit"


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b"])
def test_names_that_leave_the_cache_are_refused(cache, name):
    with pytest.raises(ConfigError, match="cache name"):
        cache.folder("prior", name)
    with pytest.raises(ConfigError, match="cache name"):
        cache.folder(name, "key")


def test_entries_are_listed_with_their_size(cache):
    (cache.folder("prior", "b") / "weights").write_bytes(b"12345")
    cache.folder("judge", "a")
    assert [(entry.kind, entry.key, entry.size) for entry in cache.entries()] == [("judge", "a", 0), ("prior", "b", 5)]


def test_clear_deletes_one_kind_or_all(cache):
    for kind, key in (("prior", "a"), ("prior", "b"), ("judge", "c")):
        cache.folder(kind, key)
    assert cache.clear("prior") == 2
    assert [entry.key for entry in cache.entries()] == ["c"]
    assert cache.clear() == 1
    assert cache.entries() == ()


def test_clear_spares_folders_that_are_no_entries(cache):
    other = cache.root / "documents" / "letters"
    other.mkdir(parents=True)
    (other / "letter.txt").write_text("dear")
    cache.folder("prior", "a")
    assert cache.clear() == 1
    assert (other / "letter.txt").exists()


def test_prune_deletes_what_nobody_used(cache):
    old, fresh = cache.folder("prior", "old"), cache.folder("prior", "fresh")
    past = time.time() - 3 * 86_400
    for path in (old, fresh):
        os.utime(path / ".mi-audit-cache", (past, past))
    cache.folder("prior", "fresh")
    assert cache.prune(max_age_days=2.0) == 1
    assert not old.exists()
    assert fresh.exists()


def test_unusable_root_is_explained(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"expected to create .*file"):
        Cache(tmp_path / "file" / "cache").folder("prior", "a")
