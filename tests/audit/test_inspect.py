import json

import pytest
import torch
from safetensors.torch import save_file

from mi_audit.audit.inspect import inspect_model, inspect_skips
from mi_audit.core.errors import ConfigError, TargetError
from mi_audit.store.targets import load_model, new_model, save_model
from tests.store.test_pickles import Malicious


def fresh(arch="built-in:cnn", channels=1):
    return new_model(arch, num_classes=4, channels=channels, size=32, mean=(0.25,), std=(0.5,), seed=0)


def test_every_fact_has_a_value_and_an_origin(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(fresh().classifier.net.state_dict(), path)
    found = inspect_model(str(path), size=48)
    assert json.loads(json.dumps(found))["facts"]["size"] == {"value": 48, "origin": "flag"}
    assert found["facts"]["arch"] == {"value": "built-in:cnn", "origin": "tensor names and shapes"}
    assert found["facts"]["num_classes"] == {"value": 4, "origin": "tensor shapes"}
    assert found["facts"]["class_order"] == {"value": "auto", "origin": "checked by accuracy"}
    assert found["file"]["safe"] and found["file"]["size"] == path.stat().st_size and found["problems"] == []
    assert found["parameters"] == sum(parameter.numel() for parameter in fresh().classifier.parameters())
    assert found["sha256"] == fresh().sha256


def test_the_config_it_prints_makes_the_model_load_without_flags(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(fresh().classifier.net.state_dict(), path)
    found = inspect_model(str(path), size=48, mean=(0.1,), std=(0.2,))
    path.with_suffix(".json").write_text(json.dumps(found["config"]))
    net = load_model(str(path)).classifier
    assert (net.size, net.mean_values, net.std_values, net.num_classes) == (48, (0.1,), (0.2,), 4)


def test_several_architectures_are_a_problem_and_not_put_into_the_config(tmp_path):
    save_file(fresh("timm:resnet18", 3).classifier.net.state_dict(), tmp_path / "x.safetensors")
    found = inspect_model(str(tmp_path / "x.safetensors"))
    assert found["alternatives"] == ["built-in:resnet18-small"] and "arch" not in found["config"]
    assert "add --arch" in found["problems"][0]


def test_a_pickle_is_listed_and_never_run(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(1), "bad": Malicious(tmp_path / "proof")}, path)
    for allow_pickle in (False, True):
        found = inspect_model(str(path), allow_pickle=allow_pickle)
        assert found["file"]["dangerous"] == ["posix.mkdir"] and not found["file"]["safe"]
    assert not (tmp_path / "proof").exists()


def test_plain_torch_files_are_safe(tmp_path):
    torch.save({"state_dict": fresh().classifier.net.state_dict()}, tmp_path / "x.pt")
    found = inspect_model(str(tmp_path / "x.pt"))
    assert found["file"]["safe"] and found["file"]["format"] == "torch (weights only)"
    assert found["facts"]["arch"]["value"] == "built-in:cnn"


def test_what_is_unknown_is_said_and_the_rest_still_shown(tmp_path):
    save_file({"strange": torch.ones(3)}, tmp_path / "x.safetensors")
    found = inspect_model(str(tmp_path / "x.safetensors"), size=32)
    assert found["facts"]["arch"] == {"value": None, "origin": "unknown"} and found["facts"]["size"]["value"] == 32
    assert "add --arch" in found["problems"][0]


def test_our_own_models_are_complete(tmp_path):
    save_model(tmp_path / "x.safetensors", fresh(), {"defense": {"name": "tldmi"}})
    found = inspect_model(str(tmp_path / "x.safetensors"))
    assert found["problems"] == [] and found["facts"]["mean"] == {"value": (0.25,), "origin": "manifest x.json"}


def test_published_weights_are_not_downloaded():
    found = inspect_model("timm:resnet18")
    assert found["file"] is None and "downloaded when they are used" in found["problems"][0]


def test_a_missing_file_is_an_error():
    with pytest.raises(TargetError, match="got no file at nowhere"):
        inspect_model("nowhere.safetensors")


def test_the_skip_connections_are_those_of_the_architecture_in_the_file(tmp_path):
    save_file(fresh("built-in:densenet121-small").classifier.net.state_dict(), tmp_path / "x.safetensors")
    rows = inspect_skips(inspect_model(str(tmp_path / "x.safetensors"), arch="built-in:densenet121-small", size=32))
    assert len(rows) == 58 and json.loads(json.dumps(rows)) == rows
    assert {row["resolution"] for row in rows[-16:]} == {"2x2"}
    assert [(row["rolss"], row["ssf"]) for row in rows] == [(1.0, 1.0)] * 42 + [(0.0, 0.01)] * 16


def test_a_network_without_skip_connections_has_none_to_show(tmp_path):
    save_file(fresh().classifier.net.state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="not applicable"):
        inspect_skips(inspect_model(str(tmp_path / "x.safetensors")))


def test_skip_connections_of_an_unknown_architecture_cannot_be_shown(tmp_path):
    save_file({"a": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(TargetError, match="add --arch"):
        inspect_skips(inspect_model(str(tmp_path / "x.safetensors")))
