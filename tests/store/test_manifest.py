import json

import pytest

from mi_audit.core.errors import TargetError
from mi_audit.store.manifest import MARK, Declared, beside, canonical, read_json, within


def test_the_first_to_speak_wins_and_keeps_its_origin():
    both = Declared.of("flag", size=32).over(Declared.of("sidecar", size=64, channels=1))
    assert (both.size, both.channels, both.mean) == (32, 1, None)
    assert both.origins == {"size": "flag", "channels": "sidecar"}


def test_timm_sidecar():
    text = json.dumps(
        {
            "architecture": "resnet18", "num_classes": 2, "label_names": ["a", "b"],
            "model_args": {"act_layer": "gelu"},
            "pretrained_cfg": {"input_size": [1, 96, 96], "mean": [0.5], "std": [0.25], "crop_pct": 0.9},
        }
    )  # fmt: skip
    facts = read_json(text, "sidecar", "config.json")
    assert (facts.arch, facts.num_classes, facts.class_names) == ("resnet18", 2, ("a", "b"))
    assert (facts.channels, facts.size, facts.mean, facts.std) == (1, 96, (0.5,), (0.25,))
    assert facts.model_kwargs == {"act_layer": "gelu"}
    assert set(facts.origins.values()) == {"sidecar"}


def test_hugging_face_labels_are_ordered_by_number():
    labels = {str(index): f"n{index}" for index in (10, 2, *range(2), *range(3, 10))}
    assert read_json(json.dumps({"id2label": labels}), "s", "s").class_names == tuple(
        f"n{index}" for index in range(11)
    )


@pytest.mark.parametrize("size", [48, {"height": 48, "width": 48}, {"shortest_edge": 48}])
def test_preprocessor_files_complete_the_config(tmp_path, size):
    (tmp_path / "config.json").write_text(json.dumps({"num_labels": 3}))
    about = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "size": size}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    facts = beside(tmp_path / "model.safetensors")
    assert (facts.num_classes, facts.size, facts.mean, facts.std) == (3, 48, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert facts.origins["mean"] == "sidecar preprocessor_config.json"


def test_the_file_named_after_the_weights_hides_the_common_one(tmp_path):
    (tmp_path / "config.json").write_text('{"arch": "timm:resnet18", "size": 224}')
    (tmp_path / "mine.json").write_text('{"arch": "built-in:cnn"}')
    facts = beside(tmp_path / "mine.safetensors")
    assert (facts.arch, facts.size) == ("built-in:cnn", None)
    assert beside(tmp_path / "other.safetensors").arch == "timm:resnet18"


def test_metadata_keys_of_other_tools():
    for key in ("architecture", "timm.architecture", "modelspec.architecture"):
        assert within({key: "resnet18"}, "x").arch == "resnet18"
    assert within({"format": "pt"}, "x") == Declared()


def test_our_own_manifest_is_told_from_other_sidecars():
    ours = canonical({**MARK, "size": 32, "order": [1, 0]})
    assert read_json(ours, "sidecar x.json", "x").origins == {"size": "manifest x.json", "order": "manifest x.json"}
    assert within({"mi_audit": ours}, "x").origins["size"] == "manifest in the metadata"
    assert read_json('{"size": 32}', "sidecar x.json", "x").origins == {"size": "sidecar x.json"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON in s.json"),
        ("[1]", "expected a JSON object in s.json, got list"),
        ('{"num_classes": "ten"}', "'ten' instead of a whole number"),
        ('{"mean": "0.5"}', "'0.5' instead of numbers"),
        ('{"arch": 5}', "the name 5"),
        ('{"label_names": "cat"}', "class names that are no list"),
        ('{"order": [0, "1"]}', "instead of whole numbers"),
        ("[" * 200_000, "expected JSON in s.json"),
        (f'{{"mean": [1{"0" * 400}]}}', "expected facts about a classifier in s.json"),
        ('{"mean": [NaN]}', "[nan] instead of finite numbers"),
        ('{"std": [Infinity]}', "[inf] instead of finite numbers"),
        ('{"mean": [true]}', "[True] instead of numbers"),
        ('{"order": [true, false, 2]}', "[True, False, 2] instead of whole numbers"),
        ('{"pretrained_cfg": 3}', "expected facts about a classifier in s.json"),
    ],
)
def test_a_broken_sidecar_is_named(text, message):
    with pytest.raises(TargetError, match=r"s\.json") as error:
        read_json(text, "sidecar", "s.json")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained", "pretrained_cfg_overlay", "cache_dir"])
def test_a_sidecar_may_not_make_the_factory_read_other_files(name):
    with pytest.raises(TargetError, match=f"the model argument {name}, which a file may not set"):
        read_json(json.dumps({"arch": "timm:resnet18", "model_args": {name: "/tmp/evil.pth"}}), "sidecar", "s.json")


def test_a_sidecar_that_is_no_text_is_named(tmp_path):
    (tmp_path / "m.json").write_bytes(b'{"arch": "\xff"}')
    with pytest.raises(TargetError, match=r"expected text in UTF-8 in .*m\.json"):
        beside(tmp_path / "m.safetensors")
