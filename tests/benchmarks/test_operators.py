import json

import torch

from tests.benchmarks import operators


def test_the_operators_of_a_call_are_counted():
    weight, calls = torch.ones(64, 64), []

    def run():
        calls.append(torch.mm(weight, weight))

    seen = operators.profiled(run, "cpu")
    assert len(calls) == 2  # the first does not count
    lines = operators.table("x", seen, "cpu")
    (product,) = [line for line in lines if line.startswith("aten::mm ")]
    assert product.split()[-1] == "1" and product.split()[-2].endswith("%")


def test_tables_stand_side_by_side():
    assert operators.side_by_side([["a", "bb"], ["c"]]) == "a  | c\nbb |"


def test_a_trace_is_a_file_that_browsers_show(tmp_path):
    operators.profiled(lambda: torch.ones(3).add(1), "cpu").export_chrome_trace(str(tmp_path / "x.json"))
    assert any(
        event.get("name") == "aten::add" for event in json.loads((tmp_path / "x.json").read_text())["traceEvents"]
    )
