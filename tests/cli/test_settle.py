import json
import os
import time
import tomllib

from mi_audit.audit.settings_tables import Settings
from mi_audit.store.cache import Cache


def test_init_writes_the_defaults_once(cli, tmp_path):
    assert cli("config", "init").exit_code == 0
    assert Settings.model_validate(tomllib.loads((tmp_path / "mi-audit.toml").read_text())) == Settings()
    assert cli("config", "init").exit_code == 2
    assert cli("config", "init", "--force").exit_code == 0
    assert cli("config", "show").exit_code == 0


def test_init_can_print(cli, tmp_path):
    assert tomllib.loads(cli("config", "init", "-").stdout)["version"] == 1
    assert not (tmp_path / "mi-audit.toml").exists()


def test_show_prints_values_with_origins(cli, tmp_path):
    (tmp_path / "mi-audit.toml").write_text("[run]\nseeds = 2\n[[gate]]\nid = 'a'\nwhen = 'fid < 3'")
    rows = json.loads(cli("config", "show", "--seed", "9", "--json", env={"MI_AUDIT_CHUNK": "4"}).stdout)
    found = {row["setting"]: (row["value"], row["origin"]) for row in rows}
    assert found["run.seeds"] == (2, str(tmp_path / "mi-audit.toml"))
    assert found["run.seed"] == (9, "command line")
    assert found["run.chunk"] == (4, "MI_AUDIT_CHUNK")
    assert found["run.profile"] == ("standard", "default")
    assert "fid < 3" in cli("config", "show").stdout


def test_schema_is_json_schema(cli):
    assert json.loads(cli("config", "schema").stdout)["additionalProperties"] is False


def test_the_cache_is_listed_pruned_and_cleared(cli, tmp_path):
    cache = Cache(tmp_path / "cache")
    old, new = cache.folder("priors", "a" * 8), cache.folder("evaluators", "b" * 8)
    long_ago = time.time() - 90 * 86_400
    for file in old.iterdir():
        os.utime(file, (long_ago, long_ago))
    assert cli("cache", "dir").stdout.strip() == str(tmp_path / "cache")
    assert {row["key"] for row in json.loads(cli("cache", "ls", "--json").stdout)} == {"a" * 8, "b" * 8}
    assert "priors" in cli("cache", "ls").stdout
    assert "deleted: 1 entries" in cli("cache", "prune", "--max-age", "30").stderr
    assert new.exists()
    assert not old.exists()
    assert cli("cache", "clear", input="n\n").exit_code == 1
    assert new.exists()
    assert cli("cache", "clear", "--yes").exit_code == 0
    assert not new.exists()
    assert "empty" in cli("cache", "ls").stdout
