import json
from dataclasses import replace

import pytest

from mi_audit.core.errors import ConfigError, NothingToAudit, StorageError
from mi_audit.store.results import read_fisher, read_result, read_sweep, to_json, write_result
from mi_audit.store.saved import kind_of, read_saved
from tests.report.sample import audit, comparison
from tests.report.test_fisher import sample as profile
from tests.report.test_sweep import sweep


@pytest.mark.parametrize("result", [audit(), comparison(), profile(), sweep()], ids=lambda found: found.kind)
def test_everything_reads_back_from_folder_and_file(tmp_path, result):
    name = {"sweep": "sweep.json", "fisher": "fisher.json"}.get(result.kind, "result.json")
    write_result(tmp_path / name, result)
    write_result(tmp_path / "other.json", result)
    found = [read_saved(path) for path in (tmp_path, tmp_path / name, tmp_path / "other.json")]
    text = (tmp_path / name).read_text()
    assert all(type(one) is type(result) and to_json(one) == text for one in found)


def test_a_run_comes_before_what_else_lies_in_its_folder(tmp_path):
    write_result(tmp_path / "fisher.json", profile())
    assert kind_of(tmp_path) == "fisher"
    write_result(tmp_path / "result.json", audit())
    assert kind_of(tmp_path) == "result" and read_saved(tmp_path).kind == "audit"


@pytest.mark.parametrize("text", ["[]", "{", "[" * 200_000, '{"kind": "else"}', '{"kind": ["sweep"]}'], ids=range(5))
def test_what_is_nothing_of_ours_is_left_to_the_reader_of_results(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    assert kind_of(tmp_path / "x.json") == "result"
    with pytest.raises(StorageError):
        read_saved(tmp_path / "x.json")


def test_a_profile_is_checked(tmp_path):
    file, good = tmp_path / "fisher.json", json.loads(to_json(profile()))
    with pytest.raises(NothingToAudit, match=r"expected a Fisher profile in .* got none; run `mi-audit fisher`"):
        read_fisher(file)
    for change, error, text in (
        ({"schema_version": "2.0.0"}, ConfigError, "expected a Fisher profile of schema 1.x"),
        ({"samples": "many"}, StorageError, "got `samples`: "),
    ):
        file.write_text(json.dumps(good | change))
        with pytest.raises(error, match=text):
            read_fisher(file)
    file.write_text("{")
    with pytest.raises(StorageError, match="expected a readable Fisher profile"):
        read_fisher(tmp_path)


def test_a_sweep_is_no_result(tmp_path):
    write_result(tmp_path / "sweep.json", sweep())
    with pytest.raises(NothingToAudit, match="expected one run, got the sweep"):
        read_result(tmp_path)


def test_numbers_that_are_none_are_neither_written_nor_read(tmp_path):
    advice = replace(sweep().advice, tolerance=float("nan"))
    with pytest.raises(StorageError, match="expected finite numbers"):
        write_result(tmp_path / "sweep.json", sweep(advice=advice))
    assert not list(tmp_path.iterdir())
    broken = to_json(sweep()).replace('"tolerance": 0.02', '"tolerance": NaN')
    assert broken != to_json(sweep())
    (tmp_path / "sweep.json").write_text(broken)
    with pytest.raises(StorageError, match="got NaN, which JSON does not know"):
        read_sweep(tmp_path)
