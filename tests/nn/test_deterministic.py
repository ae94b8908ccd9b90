import os

import pytest
import torch

from mi_audit.core.errors import NotDeterministic
from mi_audit.nn.deterministic import WORKSPACE, deterministic


def state() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic, cudnn.benchmark, os.environ.get(WORKSPACE),
    )  # fmt: skip


def test_everything_is_switched_on_inside_and_put_back_outside(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = state()
    with deterministic(True):
        assert state() == (True, False, True, False, ":4096:8")
        with deterministic(True):
            pass
        assert state() == (True, False, True, False, ":4096:8")
    assert state() == before == (False, False, False, True, None)
    with pytest.raises(KeyError), deterministic(True):
        raise KeyError
    assert state() == before


def test_nothing_changes_when_it_is_not_wanted():
    before = state()
    with deterministic(False):
        assert state() == before


def test_a_workspace_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"


def test_an_operation_without_such_a_version_is_named():
    with pytest.raises(NotDeterministic, match=r"got put_; leave out --deterministic") as caught, deterministic(True):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    assert isinstance(caught.value.__cause__, RuntimeError) and caught.value.exit_code == 4
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # outside it may


def test_a_process_that_multiplied_before_is_told_what_to_set():
    text = f"Deterministic behavior was enabled, but this operation uses CuBLAS: set {WORKSPACE}=:4096:8"
    with pytest.raises(NotDeterministic, match=f"{WORKSPACE} to be set before the first"), deterministic(True):
        raise RuntimeError(text)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), deterministic(True):
        raise RuntimeError("shapes")
