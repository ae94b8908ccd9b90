import json
from pathlib import Path

import jsonschema
import pytest

from mi_audit.core.errors import ConfigError, NothingToAudit, StorageError
from mi_audit.store.results import read_result, schema, to_json, write_result
from tests.report import sample

GOLDEN = Path(__file__).parents[1] / "report" / "golden.json"


def small():
    return sample.audit(attacks=(sample.control(),), verdict=sample.failing())


@pytest.mark.parametrize("result", [sample.audit(), sample.comparison(), sample.audit(verdict=sample.failing())])
def test_what_is_read_equals_what_was_written(result, tmp_path):
    write_result(tmp_path / "result.json", result)
    assert to_json(read_result(tmp_path)) == to_json(result)
    assert to_json(read_result(tmp_path / "result.json")) == to_json(result)


def test_reading_gives_back_the_types_of_the_dataclasses(tmp_path):
    write_result(tmp_path / "result.json", sample.comparison())
    read = read_result(tmp_path)
    assert read.after.attacks[0].measurements == sample.comparison().after.attacks[0].measurements
    assert read.changes == sample.comparison().changes


def test_golden_file_is_what_is_written_today():
    assert GOLDEN.read_text(encoding="utf-8") == to_json(small())


def test_golden_file_is_canonical():
    text = GOLDEN.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("result", [sample.audit(), sample.comparison()])
def test_own_output_follows_the_schema(result):
    document = schema()
    jsonschema.Draft202012Validator.check_schema(document)
    jsonschema.Draft202012Validator(document).validate(json.loads(to_json(result)))


def test_schema_refuses_a_share_in_words():
    broken = json.loads(to_json(sample.audit()))
    broken["evaluator"]["accuracy"]["value"] = "high"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(broken)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(number, tmp_path):
    with pytest.raises(StorageError, match="finite numbers"):
        write_result(tmp_path / "result.json", sample.audit(evaluator=sample.model(number)))
    assert not list(tmp_path.iterdir())


def test_settings_hold_paths_and_refuse_objects():
    assert '"file": "a/b"' in to_json(sample.comparison(defense={"file": Path("a/b")}))
    with pytest.raises(StorageError, match="plain settings"):
        to_json(sample.comparison(defense={"file": object()}))


def test_missing_result_is_nothing_to_audit(tmp_path):
    with pytest.raises(
        NothingToAudit, match=r"expected a result file or a run folder in .*, got none; run `mi-audit attack`"
    ):
        read_result(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", '{"kind": "audit", "schema_version": NaN}', "\ufffe\x00", "[]", '{"kind": "novel"}']
)
def test_damaged_json_is_named(text, tmp_path):
    file = tmp_path / "result.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(StorageError, match=r"result\.json"):
        read_result(file)


def test_another_major_version_is_refused_and_a_later_minor_one_is_read(tmp_path):
    file, data = tmp_path / "result.json", json.loads(to_json(sample.audit()))
    file.write_text(json.dumps(data | {"schema_version": "2.0.0"}))
    with pytest.raises(ConfigError, match=r"expected a result of schema 1\.x"):
        read_result(file)
    file.write_text(json.dumps(data | {"schema_version": "1.9.0", "invented_later": 1}))
    assert read_result(file).schema_version == "1.9.0"


def test_wrong_field_is_named(tmp_path):
    data = json.loads(to_json(sample.audit()))
    data["attacked"] = ["0"]  # a number in quotes is no number
    (tmp_path / "result.json").write_text(json.dumps(data))
    with pytest.raises(StorageError, match=r"attacked\.0"):
        read_result(tmp_path)
