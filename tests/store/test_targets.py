import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mi_audit.core.errors import StorageError, TargetError
from mi_audit.core.target import QueryLedger, TorchTarget
from mi_audit.nn import edits, heads
from mi_audit.store.targets import load_model, load_target, new_model, save_model


def fresh(arch="built-in:cnn", num_classes=4, channels=1, seed=0, **changes):
    settings = {"size": 32, "mean": (0.25,), "std": (0.5,), **changes}
    return new_model(arch, num_classes=num_classes, channels=channels, seed=seed, **settings)


def images(channels=1):
    return torch.rand(3, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def bare(path, arch="built-in:cnn", **changes):
    save_file(fresh(arch, **changes).classifier.net.state_dict(), path)
    return str(path)


def test_fresh_weights_depend_on_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    assert fresh(seed=1).sha256 == fresh(seed=1).sha256 != fresh(seed=2).sha256
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_saved_model_loads_again_without_flags(tmp_path):
    model = fresh(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), channels=3)
    model = replace(model.with_input(order=(3, 1, 0, 2)), class_names=("a", "b", "c", "d"))
    path = tmp_path / "m.safetensors"
    saved = save_model(path, model, {"defense": {"name": "tldmi", "share": 0.8}, "seed": 7})
    model.classifier.eval()
    for sidecar in (True, False):
        loaded = load_model(str(path))
        loaded.classifier.eval()
        assert torch.equal(loaded.classifier(images(3)), model.classifier(images(3)))
        assert (loaded.arch, loaded.sha256, loaded.class_names) == (model.arch, model.sha256, model.class_names)
        assert loaded.defense == {"name": "tldmi", "share": 0.8} == saved.defense
        assert loaded.class_order == "as given" and {"mean", "size", "order"} <= loaded.explicit
        assert all("manifest" in loaded.origins[fact] for fact in ("arch", "size", "mean", "class_names"))
        assert path.with_suffix(".json").exists() == sidecar
        path.with_suffix(".json").unlink(missing_ok=True)


def test_saving_hashes_the_weights_as_they_are_now(tmp_path):
    model = fresh()
    with torch.no_grad():
        model.classifier.head.bias += 1
    saved = save_model(tmp_path / "m.safetensors", model, {})
    assert saved.sha256 != model.sha256 and saved.sha256 == load_model(saved.ref).sha256


def test_the_same_model_is_saved_with_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_model(tmp_path / f"{name}.safetensors", fresh(), {"x": {"b": 1, "a": 2}})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_weights_are_never_without_their_sidecar(tmp_path, monkeypatch):
    monkeypatch.setattr("mi_audit.store.targets.write_weights", None)  # killed in between
    with pytest.raises(TypeError):
        save_model(tmp_path / "m.safetensors", fresh(), {})
    assert [file.name for file in tmp_path.iterdir()] == ["m.json"]
    with pytest.raises(TargetError, match="no file at"):
        load_model(str(tmp_path / "m.safetensors"))
    with pytest.raises(TargetError, match="expected weights in"):
        load_model(str(tmp_path))


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=str(tmp_path)):
        save_model(tmp_path / "file" / "m.safetensors", fresh(), {})


def test_a_bare_file_is_recognised_by_its_tensors(tmp_path):
    model = load_model(bare(tmp_path / "x.safetensors", num_classes=6))
    assert (model.arch, model.classifier.num_classes, model.classifier.channels) == ("built-in:cnn", 6, 1)
    assert model.explicit == frozenset() and model.class_order == "auto"


def test_flags_win_over_the_sidecar_and_it_over_metadata(tmp_path):
    state = fresh().classifier.net.state_dict()
    save_file(state, tmp_path / "x.safetensors", {"mi_audit": json.dumps({"size": 40, "mean": [0.1], "std": [0.2]})})
    (tmp_path / "x.json").write_text(json.dumps({"size": 48, "mean": [0.3], "label_names": list("abcd")}))
    (tmp_path / "labels.txt").write_text("w\nx\ny\nz\n")
    model = load_model(str(tmp_path / "x.safetensors"), size=32, labels=tmp_path / "labels.txt")
    net = model.classifier
    assert (net.size, net.mean_values, net.std_values, model.class_names) == (32, (0.3,), (0.2,), tuple("wxyz"))
    assert [model.origins[fact] for fact in ("size", "mean", "std")] == [
        "flag",
        "sidecar x.json",
        "manifest in the metadata",
    ]


def test_a_timm_folder(tmp_path):
    save_file(fresh("timm:resnet18", size=64, channels=3).classifier.net.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "resnet18", "num_classes": 4, "label_names": list("abcd")}
    config["pretrained_cfg"] = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(f"local-dir:{tmp_path}")
    assert (model.arch, model.classifier.size, model.class_names) == ("timm:resnet18", 64, tuple("abcd"))
    assert model.origins["arch"] == "sidecar config.json" and model.alternatives == ()


def test_half_precision_is_computed_in_single(tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in fresh().classifier.net.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    model = load_model(str(tmp_path / "x.safetensors"))
    assert {parameter.dtype for parameter in model.classifier.parameters()} == {torch.float32}
    assert "float16 read as float32" in model.origins["weights"]


def test_several_architectures_need_data_or_a_flag(tmp_path):
    path = bare(tmp_path / "x.safetensors", "timm:resnet18", channels=3)
    assert load_model(path).alternatives == ("built-in:resnet18-small",)
    with pytest.raises(TargetError, match=r"fits torchvision:resnet18, built-in:resnet18-small; say which.*--arch"):
        load_target(path)
    assert isinstance(load_target(path, arch="built-in:resnet18-small"), TorchTarget)


def test_the_same_weights_in_another_architecture_compute_something_else(tmp_path):
    model = load_model(bare(tmp_path / "x.safetensors", "timm:resnet18", channels=3))
    small = model.as_arch("built-in:resnet18-small")
    assert (small.arch, small.classifier.size, small.sha256) == ("built-in:resnet18-small", 64, model.sha256)
    assert torch.equal(small.classifier.head.weight, model.classifier.head.weight)
    assert small.classifier.mean_values == (0.5,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "timm:resnet18"}, "expected the weights of timm:resnet18, got"),
        ({"arch": "resnet19"}, "expected an architecture such as timm:NAME"),
        ({"num_classes": 7}, "of another shape: 8.weight (4, 128) instead of (7, 128)"),
        ({"channels": 3}, "of another shape: 0.0.weight"),
        ({"mean": (0.5, 0.5)}, "expected 1 or 1 numbers"),
    ],
)
def test_flags_that_contradict_the_weights_are_refused_in_one_line(tmp_path, options, message):
    with pytest.raises(TargetError) as error:
        load_model(bare(tmp_path / "x.safetensors"), **options)
    assert message in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 3


def test_too_many_class_names_are_refused(tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(TargetError, match=r"expected 4 class names, got 2 \(flag\); correct --labels"):
        load_model(bare(tmp_path / "x.safetensors"), labels=tmp_path / "labels.txt")


def test_own_code_that_ignores_the_class_count_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_fixed.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
    )
    save_file({"1.weight": torch.ones(3, 12), "1.bias": torch.zeros(3)}, tmp_path / "x.safetensors")
    model = load_model(str(tmp_path / "x.safetensors"), arch="py:own_fixed:net", size=2)
    assert model.classifier.num_classes == 3 and model.classifier.channels == 3
    with pytest.raises(TargetError, match=r"expected 5 classes \(flag\), got 3 outputs"):
        load_model(str(tmp_path / "x.safetensors"), arch="py:own_fixed:net", size=2, num_classes=5)


def test_code_named_by_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_evil.py").write_text("import pathlib\npathlib.Path('proof').touch()\n")
    path = bare(tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text('{"arch": "py:own_evil:net"}')
    with pytest.raises(TargetError, match="add --arch py:own_evil:net if you want that"):
        load_model(path)
    assert not (tmp_path / "proof").exists()


def test_a_target_counts_queries_and_is_frozen(tmp_path):
    save_model(tmp_path / "x.safetensors", fresh(), {})
    model, ledger = load_model(str(tmp_path / "x.safetensors")), QueryLedger()
    target = model.target(ledger)
    assert target.features(images()).shape == (3, 128) and target.logits(images()).shape == (3, 4)
    assert ledger.spent.total() == 6
    assert not any(parameter.requires_grad for parameter in model.classifier.parameters())


def test_published_weights_are_loaded_with_their_own_input(monkeypatch):
    net = fresh("timm:resnet18", size=64, channels=3).classifier.net
    monkeypatch.setattr("mi_audit.store.references.timm.create_model", lambda _name, **_options: net)
    model = load_model("timm:resnet18.a1_in1k", size=64)
    assert (model.arch, model.origins["weights"]) == ("timm:resnet18.a1_in1k", "published weights")
    assert model.classifier.mean_values == (0.485, 0.456, 0.406) and model.origins["mean"] == "timm default"


def narrow(net, *, width):
    net[8] = nn.Sequential(nn.Linear(net[8].in_features, width), nn.Linear(width, net[8].out_features))


EDIT = {"edit": "narrow", "width": 2}


@pytest.fixture
def edited(monkeypatch, tmp_path):
    """A model whose architecture was edited, saved, and the file."""
    monkeypatch.setattr(edits, "EDITS", {"narrow": narrow})
    model = new_model("built-in:cnn", num_classes=4, channels=1, size=16, mean=(0.5,), std=(0.5,), seed=0)
    return save_model(tmp_path / "m.safetensors", model.edited([EDIT]), {})


def test_an_edited_network_is_built_again_from_its_manifest(edited):
    loaded = load_model(edited.ref)
    images = torch.rand(3, 1, 16, 16)
    assert torch.equal(loaded.classifier.eval()(images), edited.classifier.eval()(images))
    assert loaded.edits == (EDIT,) and loaded.sha256 == edited.sha256
    assert loaded.as_arch("built-in:cnn").edits == (EDIT,)


def test_an_edited_network_is_refused_without_its_manifest(edited, tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_file(dict(load_file(edited.ref)), bare)
    with pytest.raises(TargetError, match=r"expected the manifest of .*bare.*, got none; keep the \.safetensors"):
        load_model(str(bare), arch="built-in:cnn", num_classes=4, size=16)
    torch.save(load_file(edited.ref), tmp_path / "bare.pth")
    with pytest.raises(TargetError, match="expected the manifest of"):
        load_model(str(tmp_path / "bare.pth"), arch="built-in:cnn", num_classes=4, size=16)


def test_the_manifest_of_another_edit_is_refused(edited):
    sidecar = Path(edited.ref).with_suffix(".json")
    about = json.loads(sidecar.read_text())
    for others in ([{**EDIT, "width": 3}], []):
        sidecar.write_text(json.dumps({**about, "edits": others}))
        if others:
            with pytest.raises(TargetError, match="got another one"):
                load_model(edited.ref)
    assert load_model(edited.ref).edits == (EDIT,)  # the metadata of the file still say it


def test_an_edit_of_a_later_version_names_the_file(edited, monkeypatch):
    monkeypatch.setattr(edits, "EDITS", {})
    with pytest.raises(TargetError, match=r"got 'narrow'; update mi-audit \(.*m\.safetensors\)"):
        load_model(edited.ref)


LOW_RANK = {"edit": "low-rank-head", "layer": "8", "rank": 3, "norm": "none"}
BOTTLENECK = {"edit": "bottleneck-head", "layer": "8", "code": 3, "eval_noise": False}


def forged(path, edit):
    """A small network that says it was edited by `edit`, under a seal that fits: no secret goes into it."""
    model = fresh().edited([LOW_RANK])
    with torch.no_grad():
        model.classifier.net.get_buffer(edits.SEAL).copy_(edits.seal([edit]))
    return save_model(path, replace(model, edits=(edit,)), {}).ref


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({**LOW_RANK, "rank": 10**12}, r"of another shape: 8.reduce.weight \(3, 128\) instead of \(1000000000000, 128"),
        ({**LOW_RANK, "rank": 10**8}, "of another shape: 8.reduce.weight"),
        ({**LOW_RANK, "rank": 10**18}, "edits that fit built-in:cnn, got the error 'Storage size"),
        ({**LOW_RANK, "rank": 10**30}, "expected the settings of the edit 'low-rank-head', got 'empty"),
        ({**LOW_RANK, "rank": -1}, "expected a whole number from 1 as rank, got -1"),
        ({**BOTTLENECK, "code": 10**11}, "2 missing: 8.encode.weight, 8.encode.bias"),
        ({**BOTTLENECK, "eval_noise": "x"}, "expected true or false as eval_noise, got 'x'"),
        ({"edit": "skips", "factors": ["0"]}, "expected numbers by name as factors"),
        ({"edit": "skips", "factors": "0"}, "expected numbers by name as factors"),
    ],
)
def test_edits_of_a_hostile_manifest_are_refused_before_memory_is_taken(tmp_path, monkeypatch, edit, message):
    devices: list[str] = []
    build = heads._replace

    def watched(net, layer, head):
        build(net, layer, head)
        devices.append(next(net.get_submodule(layer).parameters()).device.type)

    path = forged(tmp_path / "m.safetensors", edit)
    monkeypatch.setattr(heads, "_replace", watched)
    with pytest.raises(TargetError, match=message) as error:
        load_model(path)
    assert "m.safetensors" in str(error.value) and "\n" not in str(error.value) and set(devices) <= {"meta"}


def test_an_edit_that_fits_is_rehearsed_without_memory_and_then_made(tmp_path):
    saved = save_model(tmp_path / "m.safetensors", fresh().edited([LOW_RANK]), {})
    loaded = load_model(saved.ref)
    assert {value.device.type for value in loaded.classifier.state_dict().values()} == {"cpu"}
    assert torch.equal(loaded.classifier.eval()(images()), saved.classifier.eval()(images()))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"rule": "blur"}], "expected an output rule of label-only, .* got 'blur'"),
        ([{"rule": "label-only"}, {"rule": "rounding"}], "expected one output rule, got label-only, rounding"),
        ([{"rule": "top-k", "k": "3"}], "expected a whole number as k, got '3'"),
        ([{"rule": "output-noise", "secret": 2**80}], "expected a secret of 64 bits"),
    ],
)
def test_an_output_rule_that_cannot_be_followed_is_refused_when_the_model_is_loaded(tmp_path, rules, message):
    damaged = replace(fresh(), edits=tuple({"edit": "output", **rule} for rule in rules))
    path = save_model(tmp_path / "m.safetensors", damaged, {}).ref
    with pytest.raises(TargetError, match=rf"{message}.*m\.safetensors"):
        load_model(path)


@pytest.mark.parametrize(
    ("arch", "fact", "value", "message"),
    [
        ("built-in:cnn", "size", 1_000_000, "expected an input size from 1 to 2048 pixels, got 1000000"),
        ("built-in:cnn", "size", -1, "expected an input size from 1 to 2048 pixels, got -1"),
        ("timm:vit_tiny_patch16_224", "size", 10**7, "expected an input size from 1 to 2048 pixels"),
        (
            "built-in:cnn",
            "num_classes",
            10**11,
            r"expected num_classes from 1 to 128, .*m.safetensors, got 100000000000",
        ),
        ("built-in:cnn", "channels", 10**11, "expected channels from 1 to 128, "),
    ],
)
def test_sizes_of_a_damaged_manifest_are_refused_before_memory_is_taken(
    tmp_path, monkeypatch, arch, fact, value, message
):
    path = save_model(tmp_path / "m.safetensors", fresh(), {}).ref
    about = json.loads(Path(path).with_suffix(".json").read_text())
    Path(path).with_suffix(".json").write_text(json.dumps({**about, "arch": arch, fact: value}))
    monkeypatch.setattr("mi_audit.store.targets._fresh", None)  # nothing is built
    with pytest.raises(TargetError, match=message):
        load_model(path)


def test_a_hastened_target_answers_like_the_plain_one():
    model = new_model("built-in:cnn", num_classes=4, channels=3, size=32, mean=(0.5,), std=(0.2,), seed=0)
    plain, quick = model.target(), model.target(hasten=True)
    images = torch.rand(3, 3, 32, 32)
    for ours, theirs in zip(quick.logits_and_features(images), plain.logits_and_features(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert torch.equal(quick.scores(images), plain.scores(images))
    assert any(isinstance(module, nn.BatchNorm2d) for module in quick.network().modules())
