"""The tests themselves: types are checked wherever one runs, and all of them together share the cores."""

import os
from types import SimpleNamespace

import pytest
import torch
from jaxtyping import TypeCheckError

from mi_audit.store.images import quantise
from tests import conftest
from tests.documents import ROOT


def test_types_are_checked_in_every_process_that_tests():
    with pytest.raises(TypeCheckError):
        quantise(torch.zeros(3, 8))


@pytest.mark.parametrize(
    ("arguments", "marks", "there", "processes"),
    [
        (["tests"], "not slow", 2, 2),
        (["tests"], "not slow", 64, conftest.MOST),
        (["tests/nn", "tests/test_suite.py"], "not slow", 2, 2),
        (["tests/test_suite.py", "tests/test_suite.py::test_x[tests]"], "not slow", 2, 0),
        (["tests"], "not slow", 1, 0),  # a single one would only add its start
        (["tests"], "not slow and not gpu", 2, 2),
        (["tests"], "not (slow or gpu)", 2, 2),
        (["tests"], "not(gpu)", 2, 2),
        (["tests"], "", 2, 2),
        (["tests"], "gpus", 2, 2),
        (["tests"], "gpu and", 2, 2),  # pytest says what is wrong with it
        (["tests"], "gpu", 2, 0),
        (["tests"], "gpu and slow", 2, 0),
        (["tests"], "slow or(gpu)", 2, 0),
        (["tests"], "not slow and gpu", 2, 0),
        (["tests"], "not gpu or slow and gpu", 2, 0),
        (["tests"], "not (not gpu)", 2, 0),
    ],
)
def test_folders_get_a_process_per_core_and_files_none(monkeypatch, arguments, marks, there, processes):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(conftest, "cores", lambda: there)
    config = SimpleNamespace(args=arguments, option=SimpleNamespace(markexpr=marks))
    assert conftest.pytest_xdist_auto_num_workers(config) == processes


def test_cores_that_a_process_may_not_use_are_not_counted(monkeypatch):
    assert conftest.cores() <= (os.cpu_count() or 1)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert conftest.cores() == 1


@pytest.mark.parametrize(("there", "processes", "threads"), [(2, 2, "1"), (16, 4, "4"), (2, 8, "1")])
def test_processes_share_the_cores(monkeypatch, there, processes, threads):
    monkeypatch.setattr(conftest, "cores", lambda: there)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # so that it is put back
    monkeypatch.delenv("OMP_NUM_THREADS")
    conftest.pytest_xdist_setupnodes([object()] * processes)
    assert conftest.os.environ["OMP_NUM_THREADS"] == threads
    conftest.pytest_xdist_setupnodes([object()])
    assert conftest.os.environ["OMP_NUM_THREADS"] == threads  # what somebody set stays
