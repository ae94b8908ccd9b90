import json
from pathlib import Path

import pytest

from mi_audit.audit.clock import Clock
from mi_audit.audit.progress import Silent
from mi_audit.core.errors import StorageError
from mi_audit.store.runs import RunFolder
from mi_audit.store.times import read_times


class Told(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def test_a_resumed_run_adds_its_seconds(tmp_path: Path):
    told = Told()
    with RunFolder(tmp_path / "run") as folder:
        assert read_times(folder.path) is None
        Clock({"load": 1.0, "gmi": 2.0}, {"a": 2.0}).write(folder, told)
        Clock({"load": 1.5, "ppa": 4.0}, {"b": 4.0}).write(folder, told)
        assert read_times(folder.path) == {
            "stages": {"load": 2.5, "gmi": 2.0, "ppa": 4.0}, "jobs": {"a": 2.0, "b": 4.0}, "total_seconds": 8.5,
        }  # fmt: skip
    assert told.warnings == []


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"[]", b"\xff\x00", b'{"stages": {"a": "x"}, "jobs": {}}', b'{"stages": {}}',
     b'{"stages": 3, "jobs": {}}', b'{"stages": {}, "jobs": {}, "total_seconds": null}',
     b'{"stages": {"a": true}, "jobs": {}}'],
)  # fmt: skip
def test_a_damaged_file_is_written_anew_with_a_warning(tmp_path: Path, damaged: bytes):
    told = Told()
    with RunFolder(tmp_path / "run") as folder:
        (folder.path / "timing.json").write_bytes(damaged)
        with pytest.raises(StorageError, match=r"damaged file .*timing\.json; delete it"):
            read_times(folder.path)
        Clock({"load": 1.0}).write(folder, told)
        assert json.loads((folder.path / "timing.json").read_text()) == {
            "stages": {"load": 1.0}, "jobs": {}, "total_seconds": 1.0,
        }  # fmt: skip
    (warning,) = told.warnings
    assert warning.endswith("timing.json was damaged and is written anew with the times of this run only")
