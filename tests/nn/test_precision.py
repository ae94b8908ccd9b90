import pytest
import torch

from mi_audit.nn import precision
from mi_audit.nn.precision import autocast, single


def test_only_mixed_precision_computes_in_bfloat16():
    weight = torch.eye(2)
    with autocast("cpu", "bf16"):
        assert (weight @ weight).dtype == torch.bfloat16
    with autocast("cpu", "32"):
        assert (weight @ weight).dtype == torch.float32


def test_auto_follows_the_hardware(monkeypatch):
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "has_native_bf16", lambda _device, native=native: native)
        with autocast("cpu", "auto"):
            assert (torch.eye(2) @ torch.eye(2)).dtype == dtype


def test_true_single_precision_ends_with_the_block(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with autocast("cpu", "bf16"):
        with pytest.raises(KeyError), single("cpu"):
            assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32
            assert not torch.backends.cudnn.allow_tf32
            raise KeyError
        assert (torch.eye(2) @ torch.eye(2)).dtype == torch.bfloat16
    assert torch.backends.cudnn.allow_tf32
