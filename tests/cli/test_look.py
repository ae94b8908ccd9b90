import json

import pytest

from mi_audit.audit.doctor import Check


@pytest.mark.parametrize("kind", ["attacks", "defenses", "metrics", "priors"])
def test_lists_are_arrays_with_the_promised_keys(cli, kind):
    rows = json.loads(cli("list", kind, "--json").stdout)
    assert rows
    assert all({"name", "access", "prior", "paper"} <= row.keys() for row in rows)


def test_the_list_for_people(cli):
    text = cli("list", "attacks", env={"COLUMNS": "120"}).stdout
    assert all(word in text for word in ("gmi", "ppa", "white-box", "gmi-gan", "CVPR 2020"))


def test_the_list_for_the_readme(cli):
    text = cli("list", "--markdown").stdout
    assert "| attack | access | prior | paper |" in text
    assert "| `tldmi` |" in text


def test_an_unknown_kind_exits_2(cli):
    assert cli("list", "generators").exit_code == 2


def test_info_explains_settings(cli):
    text = cli("info", "gmi", env={"COLUMNS": "120"}).stdout
    assert all(
        word in text for word in ("gmi  attack", "white-box", "steps", "1500", "300", "Gradient steps per latent")
    )


@pytest.mark.parametrize("name", ["gmi", "tldmi", "fid", "gmi-gan", "attack:ppa"])
def test_info_as_json(cli, name):
    assert json.loads(cli("info", name, "--json").stdout)["name"] == name.rpartition(":")[2]


def test_info_says_what_must_be_told_with_a_defended_model(cli):
    text = " ".join(cli("info", "trap-mid", env={"COLUMNS": "120"}).stdout.split())
    assert "caution Its owner planted a backdoor" in text
    assert "caution" not in cli("info", "tldmi").stdout
    both = json.loads(cli("info", "calor", "--json").stdout)["caution"]
    assert "loft: May only stop attacks" in both and "ca: Its probabilities" in both


def test_info_on_nothing_suggests(cli):
    done = cli("info", "ppq")
    assert done.exit_code == 2
    assert "did you mean 'ppa'?" in done.stderr


FOUND = {
    "ref": "m",
    "file": {"path": "m", "format": "safetensors", "sha256": "ab"},
    "parameters": 1200,
    "facts": {
        "arch": {"value": "timm:resnet18", "origin": "flag"},
        "class_names": {"value": tuple(f"name{i}" for i in range(40)), "origin": "sidecar"},
        "std": {"value": None, "origin": "unknown"},
    },
    "problems": [],
}


def test_inspect_shows_facts_with_origins(cli, monkeypatch):
    seen = {}
    monkeypatch.setattr("mi_audit.audit.inspect.inspect_model", lambda ref, **more: seen.update(more, ref=ref) or FOUND)
    done = cli("inspect", "m", "--arch", "timm:resnet18", "--mean", "0.5")
    assert done.exit_code == 0, done.output
    assert (seen["ref"], seen["arch"], seen["mean"], seen["allow_pickle"]) == ("m", "timm:resnet18", (0.5,), False)
    assert "1,200" in done.stdout
    assert "(40 in all)" in done.stdout
    assert "std" not in done.stdout


def test_inspect_of_what_would_not_load_exits_3(cli, monkeypatch):
    broken = FOUND | {"problems": ["expected the tensors of a common architecture"]}
    monkeypatch.setattr("mi_audit.audit.inspect.inspect_model", lambda *_, **__: broken)
    done = cli("inspect", "m", "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["problems"] == broken["problems"]


def test_inspect_shows_the_skip_connections(cli):
    text = cli("inspect", "torchvision:resnet18", "--skips", env={"COLUMNS": "100"}).stdout
    assert [line.split() for line in text.splitlines() if line.startswith("layer4")] == [
        ["layer4.0.residual", "BasicBlock", "projection", "4", "7x7", "1", "0", "0.2"],
        ["layer4.1.residual", "BasicBlock", "identity", "4", "7x7", "1", "0", "0.2"],
    ]
    assert "8 skip connections; changed by rolss 2, ssf 2" in text


def test_inspect_of_skip_connections_as_json(cli):
    rows = json.loads(cli("inspect", "torchvision:resnet18", "--skips", "--json").stdout)["skips"]
    assert len(rows) == 8
    assert rows[-1] == {
        "name": "layer4.1.residual", "block": "layer4.1", "add": "residual", "block_class": "BasicBlock",
        "kind": "identity", "stage": 4, "resolution": "7x7", "factor": 1.0, "rolss": 0.0, "ssf": 0.2,
    }  # fmt: skip


def test_inspect_of_the_skip_connections_of_a_network_without_exits_2(cli):
    done = cli("inspect", "torchvision:vgg11", "--skips")
    assert done.exit_code == 2
    assert "not applicable" in done.stderr


def test_inspect_without_a_model_exits_2(cli):
    assert cli("inspect").exit_code == 2


def test_inspect_of_a_missing_file_exits_3(cli):
    assert cli("inspect", "none.safetensors").exit_code == 3


def test_doctor(cli):
    document = json.loads(cli("doctor", "--json").stdout)
    assert document["ok"]
    assert {"python", "torch", "cpu", "threads", "disk", "cache"} <= {row["name"] for row in document["checks"]}
    assert all(row["status"] in ("ok", "warn", "fail") for row in document["checks"])


def test_a_failed_check_exits_3(cli, monkeypatch):
    monkeypatch.setattr("mi_audit.audit.doctor.examine", lambda: (Check("torch", "fail", "2.9"),))
    done = cli("doctor")
    assert done.exit_code == 3
    assert "✗  torch  2.9" in done.stdout


def test_doctor_reports_a_cache_that_cannot_be_written(cli, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MI_AUDIT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    done = cli("doctor", "--json")
    assert {row["name"]: row["status"] for row in json.loads(done.stdout)["checks"]}["cache"] == "fail"
    assert done.exit_code == 3
