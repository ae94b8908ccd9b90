import pytest
import torch
from torch import nn

from mi_audit.core.errors import TargetError
from mi_audit.store.state_dicts import clean, tensors_in

STATE = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("content", "wrappers"),
    [
        (STATE, ()),
        ({"state_dict": STATE, "epoch": 3}, ("state_dict",)),
        ({"model": STATE}, ("model",)),
        ({"model": {"state_dict": STATE}}, ("model", "state_dict")),
        ({"state_dict": {}, "state_dict_ema": STATE}, ("state_dict_ema",)),
        ({"model": {"fc.weight": torch.zeros(2, 2)}, "model_ema": STATE}, ("model_ema",)),
        ({"model": {"fc.weight": torch.zeros(2, 2)}, "ema": STATE, "optimizer": {}}, ("ema",)),
    ],
)
def test_the_state_dict_is_found_and_averaged_weights_come_first(content, wrappers):
    tensors, path = tensors_in(content, "x.pt")
    assert path == wrappers
    assert torch.equal(tensors["fc.weight"], STATE["fc.weight"])


def test_a_whole_module_gives_its_state_dict():
    assert set(tensors_in({"model": nn.Linear(2, 2)}, "x.pt")[0]) == {"weight", "bias"}


@pytest.mark.parametrize(("content", "found"), [([1, 2], "list"), ({"epoch": 3}, "epoch"), ({}, "nothing")])
def test_a_file_without_a_state_dict_is_named(content, found):
    with pytest.raises(TargetError, match=rf"in x.pt, got {found}; save model.state_dict"):
        tensors_in(content, "x.pt")


def test_wrapper_prefixes_are_removed_however_nested():
    wrapped = {f"module._orig_mod.{name}": value for name, value in STATE.items()}
    cleaned, notes = clean(wrapped, "x.pt")
    assert set(cleaned) == set(STATE)
    assert notes == ("prefix module. removed", "prefix _orig_mod. removed")


def test_the_counter_of_averaged_weights_is_dropped():
    cleaned, _ = clean({"n_averaged": torch.tensor(3), "module.fc.weight": torch.ones(1)}, "x.pt")
    assert set(cleaned) == {"fc.weight"}


def test_a_prefix_that_not_all_names_share_stays():
    cleaned, notes = clean({"module.a": torch.ones(1), "b": torch.ones(1)}, "x.pt")
    assert set(cleaned) == {"module.a", "b"} and notes == ()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32_and_integers_stay(kind):
    cleaned, notes = clean({"w": torch.full((2,), 0.5, dtype=kind), "n": torch.tensor(7)}, "x.pt")
    assert cleaned["w"].dtype == torch.float32 and torch.equal(cleaned["w"], torch.full((2,), 0.5))
    assert cleaned["n"].dtype == torch.int64
    assert notes == (f"{str(kind).removeprefix('torch.')} read as float32",)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(number):
    with pytest.raises(TargetError, match=r"got NaN or infinite numbers in layer.bias of x.pt"):
        clean({"layer.weight": torch.ones(2), "layer.bias": torch.tensor([0.0, number])}, "x.pt")
