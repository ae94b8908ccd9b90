import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mi_audit.core.errors import TargetError
from mi_audit.store.weights import hash_weights, read_facts, read_header, read_weights, write_weights

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1, 2]), "empty": torch.zeros(0)}


def test_what_is_written_is_read(tmp_path):
    write_weights(tmp_path / "w.safetensors", TENSORS, {"arch": "x"})
    tensors, metadata = read_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items()) and len(tensors) == 3
    assert json.loads(metadata["mi_audit"]) == {"arch": "x"} and metadata["format"] == "pt"


def test_facts_are_read_and_checked(tmp_path):
    file = tmp_path / "w.safetensors"
    write_weights(file, TENSORS, {"arch": "x", "facts": {"key": "1"}})
    assert read_facts(file) == {"arch": "x", "facts": {"key": "1"}}
    save_file(TENSORS, file)
    assert read_facts(file) == {}
    for damaged in ("{", "[" * 200_000, "[1]"):
        save_file(TENSORS, file, {"mi_audit": damaged})
        with pytest.raises(TargetError, match=r"w\.safetensors"):
            read_facts(file)


def test_the_header_alone_gives_shapes(tmp_path):
    write_weights(tmp_path / "w.safetensors", TENSORS, {})
    assert read_header(tmp_path / "w.safetensors")[0] == {"a": (2,), "b": (2, 3), "empty": (0,)}


def test_the_same_weights_give_the_same_bytes_in_every_process(tmp_path):
    program = (
        "import sys, torch, pathlib; from mi_audit.store.weights import write_weights\n"
        "write_weights(pathlib.Path(sys.argv[1]), {'a': torch.arange(3.), 'b': torch.ones(2)}, {'y': 1, 'x': [2]})"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "there")], check=True)
    written = {(tmp_path / "there").read_bytes()}
    for _ in range(8):
        write_weights(tmp_path / "here", {"b": torch.ones(2), "a": torch.arange(3.0)}, {"x": [2], "y": 1})
        written.add((tmp_path / "here").read_bytes())
    assert len(written) == 1


def test_tied_and_transposed_tensors_are_written_apart(tmp_path):
    shared = torch.arange(6.0).view(2, 3)
    write_weights(tmp_path / "w.safetensors", {"a": shared, "b": shared.t()}, {})
    assert torch.equal(read_weights(tmp_path / "w.safetensors")[0]["b"], shared.t())


def test_the_hash_ignores_order_and_sees_everything_else():
    first = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    same = {"b": torch.ones(1), "a": torch.zeros(2, 3)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.full((1,), 1.5)},
    ]
    assert hash_weights(first) == hash_weights(same)
    assert hash_weights(first) not in {hash_weights(other) for other in others}


@given(st.integers(0, 5), st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]))
def test_every_shape_and_type_can_be_hashed(size, kind):
    assert len(hash_weights({"x": torch.zeros(size, 2, dtype=kind), "scalar": torch.zeros((), dtype=kind)})) == 64


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:-4])
    for read in (read_weights, read_header):
        with pytest.raises(TargetError, match=r"expected a complete safetensors file, got .*w.safetensors"):
            read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TargetError, match=r"got no file at .*none.safetensors"):
        read_weights(tmp_path / "none.safetensors")
