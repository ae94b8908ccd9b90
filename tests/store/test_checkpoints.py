import pickle

import pytest
import torch
from torch import nn

from mi_audit.core.errors import TargetError
from mi_audit.store.checkpoints import open_checkpoint, recognise
from mi_audit.store.weights import write_weights
from tests.store.test_pickles import Malicious

STATE = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
def test_torch_files_old_and_new_are_read(tmp_path, suffix, zipped):
    path = tmp_path / f"x.{suffix}"
    content = {"epoch": 2, "state_dict": {f"module.{k}": v for k, v in STATE.items()}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.tensors) == set(STATE) and checkpoint.format == "torch (weights only)"
    assert checkpoint.notes == ("taken from state_dict", "prefix module. removed")


def test_safetensors_keep_their_metadata(tmp_path):
    write_weights(tmp_path / "x.safetensors", STATE, {"arch": "a"})
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.metadata["mi_audit"] == '{"arch": "a"}' and checkpoint.format == "safetensors"


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pkl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html><title>Quota exceeded</title>", "got a web page"),
        (b"\n  <html><body>sign in</body></html>", "got a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "got a git-lfs pointer"),
        (b"", "got the empty file"),
    ],
)
def test_what_only_looks_like_weights_is_recognised(tmp_path, suffix, content, message):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=message) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value) and error.value.exit_code == 3 and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["pt", "pth", "pkl"])
def test_a_malicious_pickle_is_refused_unrun_naming_what_it_calls(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    torch.save({"state_dict": STATE, "bad": Malicious(tmp_path / "proof")}, path)
    with pytest.raises(TargetError, match=r"got a pickle that calls posix.mkdir.*--allow-pickle") as error:
        open_checkpoint(path)
    assert not (tmp_path / "proof").exists() and "\n" not in str(error.value)


def test_a_plain_pickle_under_a_torch_name_is_refused_unrun(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "proof")))
    with pytest.raises(TargetError, match=r"posix.mkdir"):
        open_checkpoint(path)
    assert not (tmp_path / "proof").exists()


def test_torchscript_is_refused_whatever_its_name(tmp_path):
    path = tmp_path / "x.pt"
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    with pytest.raises(TargetError, match=r"got a TorchScript program.*--allow-pickle"):
        open_checkpoint(path)


def test_torchscript_gives_its_tensors_when_allowed(tmp_path):
    path = tmp_path / "x.torchscript"
    net = nn.Linear(2, 3)
    torch.jit.trace(net, torch.zeros(1, 2)).save(str(path))
    checkpoint = open_checkpoint(path, allow_pickle=True)
    assert torch.equal(checkpoint.tensors["weight"], net.weight) and checkpoint.format.startswith("unsafe")


def test_an_exported_program_is_refused(tmp_path):
    path = tmp_path / "x.pt2"
    path.write_bytes(b"PK anything")
    with pytest.raises(TargetError, match="an exported program, which torch loads through pickle"):
        open_checkpoint(path)


def test_a_pickled_module_loads_when_allowed_and_leaves_no_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    net = nn.Linear(2, 3)
    torch.save({"model": net, "proof": Malicious(tmp_path / "proof")}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt", allow_pickle=True)
    assert torch.equal(checkpoint.tensors["weight"], net.weight)
    assert (tmp_path / "proof").is_dir()  # it did run, which is what the user allowed
    assert not list((tmp_path / "scratch").iterdir())


def test_nan_weights_are_refused_by_tensor_and_file(tmp_path):
    write_weights(tmp_path / "x.safetensors", {**STATE, "fc.bias": torch.tensor([0.0, float("nan")])}, {})
    with pytest.raises(TargetError, match=r"NaN or infinite numbers in fc.bias of .*x.safetensors"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_a_damaged_torch_file_is_named(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(TargetError, match=r"expected a torch checkpoint, got .*x.pt"):
        open_checkpoint(path)


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path):
    with pytest.raises(TargetError, match="got no file at"):
        recognise(tmp_path / "none.pt")
    (tmp_path / "x.h5").write_bytes(b"\x89HDF")
    with pytest.raises(TargetError, match=r"expected weights in one of .safetensors, .*, got .*x.h5"):
        recognise(tmp_path / "x.h5")
