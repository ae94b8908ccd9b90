from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from mi_audit.core.errors import TargetError
from mi_audit.store.references import locate, published
from mi_audit.store.weights import write_weights


def weights(path: Path) -> Path:
    write_weights(path, {"w": torch.ones(1)}, {})
    return path


@pytest.mark.parametrize("form", ["{folder}", "local-dir:{folder}", "{folder}/model.safetensors"])
def test_the_customary_name_wins_in_a_folder(tmp_path, form):
    weights(tmp_path / "another.safetensors")
    file = weights(tmp_path / "model.safetensors")
    assert locate(form.format(folder=tmp_path)) == file


def test_safetensors_win_over_pickles(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"1")
    assert locate(str(tmp_path / "x.pt")) == tmp_path / "x.pt"
    file = weights(tmp_path / "b.safetensors")
    assert locate(str(tmp_path)) == file


def test_two_files_without_a_customary_name_are_not_chosen_between(tmp_path):
    for name in ("a", "b"):
        weights(tmp_path / f"{name}.safetensors")
    with pytest.raises(TargetError, match=r"got a.safetensors, b.safetensors; name the file"):
        locate(str(tmp_path))


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("nowhere.safetensors", "got no file at nowhere.safetensors; correct the path"),
        ("resnet18", "got no file at resnet18"),
        ("local-dir:nowhere", "expected a folder at nowhere"),
        ("built-in:cnn", "got the architecture built-in:cnn; give the file of weights and add --arch built-in:cnn"),
        ("py:a:b", "got the architecture py:a:b"),
        ("https://example.org/m.safetensors", "download it first"),
    ],
)
def test_references_that_name_no_weights(tmp_path, monkeypatch, ref, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetError, match="expected") as error:
        locate(ref)
    assert message in str(error.value) and error.value.exit_code == 3


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(TargetError, match=r"expected weights in .*, got no .safetensors"):
        locate(str(tmp_path))


def test_a_hub_repository_is_read_as_a_folder_and_pickles_are_fetched_only_for_want_of_safetensors(
    tmp_path, monkeypatch
):
    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    file = weights(tmp_path / "model.safetensors")
    assert locate("hf-hub:people/faces@v2") == file
    assert asked == [("people/faces", "v2", ("*.json", "*.safetensors"))]
    file.rename(tmp_path / "pytorch_model.bin")
    assert locate("hf-hub:people/faces") == tmp_path / "pytorch_model.bin"
    assert asked[1:] == [
        ("people/faces", None, ("*.json", "*.safetensors")),
        ("people/faces", None, ("*.json", "*.bin", "*.pth")),
    ]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def snapshot(*_arguments, **_options):
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(TargetError, match="expected the repository hf-hub:a/b, got 'no route'; check the name"):
        locate("hf-hub:a/b")


def test_published_weights_bring_their_input_and_class_names(monkeypatch):
    net = torchvision.models.squeezenet1_1()
    monkeypatch.setattr("torchvision.models.get_model", lambda _name, **_options: net)
    found, facts = published("torchvision:squeezenet1_1@IMAGENET1K_V1")
    assert found is net and facts.arch == "torchvision:squeezenet1_1" and facts.size == 224
    assert facts.class_names is not None and len(facts.class_names) == 1000 and facts.class_names[0] == "tench"


def test_weights_that_do_not_exist_list_those_that_do():
    with pytest.raises(TargetError, match="expected resnet50@ one of IMAGENET1K_V1, IMAGENET1K_V2, got 'V9'"):
        published("torchvision:resnet50@V9")


def test_a_download_that_fails_is_one_line(monkeypatch):
    def fail(*_arguments, **_options):
        raise URLError("offline")

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(TargetError, match=r"expected the published weights of timm:resnet18, got '.*offline.*'; check"):
        published("timm:resnet18")
