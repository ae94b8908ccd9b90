import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from mi_audit.core.errors import TargetError
from mi_audit.store.pickles import convert_in_child, dangerous, globals_in, is_torchscript


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


class Dialling:
    """Opens a connection to this machine when it is unpickled."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __reduce__(self):
        import socket

        return socket.create_connection, (("127.0.0.1", self.port), 5)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_imports_are_listed_without_running_them(tmp_path, protocol):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([{"a": 1}, Malicious(tmp_path / "proof")], protocol=protocol))
    assert dangerous(globals_in(path)) == ("posix.mkdir",)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_imports_of_torch_files_old_and_new(tmp_path, zipped):
    path = tmp_path / "x.pt"
    content = {"w": torch.ones(3), "bad": Malicious(tmp_path / "proof"), "net": nn.ReLU()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    names = dangerous(globals_in(path))
    assert "posix.mkdir" in names and "torch.nn.modules.activation.ReLU" in names


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_tensors_use_nothing_dangerous(tmp_path, zipped):
    path = tmp_path / "x.pt"
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    content = OrderedDict((str(kind), torch.ones(3, dtype=kind)) for kind in kinds)
    content["parameter"] = nn.Parameter(torch.ones(2))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert dangerous(globals_in(path)) == ()


def test_a_name_fetched_from_the_memo_is_found(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x04true\x85R.")
    assert globals_in(path) == ("posix.system",)


def test_garbage_lists_nothing(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(bytes(range(200, 256)) * 4)
    assert globals_in(path) == ()


def test_torchscript_is_recognised(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "x.pt"))
    torch.save({"w": torch.ones(1)}, tmp_path / "y.pt")
    assert is_torchscript(tmp_path / "x.pt") and not is_torchscript(tmp_path / "y.pt")


def test_a_child_that_fails_says_why(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(TargetError, match=r"expected .*x.pkl to hold a network or its tensors, got '.*'; export it"):
        convert_in_child(path)


def test_a_child_has_no_network(tmp_path):
    import socket

    path = tmp_path / "x.pkl"
    with socket.create_server(("127.0.0.1", 0)) as server:
        path.write_bytes(pickle.dumps({"w": torch.ones(1), "x": Dialling(server.getsockname()[1])}))
        torch.save({"w": torch.ones(1), "x": Dialling(server.getsockname()[1])}, path)
        try:
            convert_in_child(path)
        except TargetError as error:
            assert "Network is unreachable" in str(error) or "refused" in str(error)
        else:
            pytest.skip("this system does not let a process give up its network")


def test_zips_without_pickles_list_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        archive.writestr("a.txt", "hello")
    assert globals_in(tmp_path / "x.pt2") == ()
