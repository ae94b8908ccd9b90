from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.benchmarks import cases, compared
from tests.benchmarks.options import Options


def course(monkeypatch: pytest.MonkeyPatch, rates: dict[int, float], wanted: float | None) -> tuple[list[int], list]:
    """Numbers of steps that were run after warming up, and the rates found, when so many steps find so much."""
    case, asked = cases.quick()["gmi"], []

    def run(size, seed):
        asked.append(size.settings["steps"])
        rows = torch.zeros(10, 1)
        return SimpleNamespace(images=rows + rates.get(asked[-1], 0.0), labels=rows[:, 0])

    monkeypatch.setattr(compared.quality, "hits", lambda _net, images, _labels: images[:, 0])
    monkeypatch.setattr(compared.quality, "losses", lambda _net, images, _labels: images[:, 0])
    built = SimpleNamespace(target=nn.Identity(), evaluator=nn.Identity())
    options = Options(
        device="cpu", precisions=("32",), clock="cpu", repetitions=3, budget=1.0, seeds=1, cache=None, say=len
    )
    found = compared._course(case, built, options, run, wanted)
    assert found.hits.tolist() == pytest.approx([rates[80]] * 10)  # of all steps, whatever ran last
    return asked[1:], [round(rate, 6) for _, rate in found.points]


@pytest.mark.parametrize(
    ("quarter", "wanted", "steps"),
    [
        (0.95, None, [80, 20]),  # nine tenths of 0.95
        (0.5, None, [80, 20, 40]),
        (0.5, 0.45, [80, 20]),
        (0.95, 0.99, [80, 20, 40]),
    ],
)
def test_shares_of_the_steps_are_run_up_to_the_first_that_reaches_the_rate(monkeypatch, quarter, wanted, steps):
    asked, rates = course(monkeypatch, {20: quarter, 40: 0.9, 80: 0.95}, wanted)
    assert asked == steps
    assert rates == [{20: quarter, 40: 0.9, 80: 0.95}[one] for one in steps]
