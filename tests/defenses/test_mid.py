import json

import pytest
import torch
from torch.nn import functional as F

from mi_audit.core.defense import Moment, Step
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.mid import MID
from mi_audit.nn import edits
from tests.nn.test_anatomy import plain_cnn
from tests.toy import dataset

EXAMPLE = torch.zeros(1, 3, 8, 8)


def defended(**settings):
    torch.manual_seed(0)
    defense, net = MID(**settings), plain_cnn()
    edits.apply(net, defense.edits(net, EXAMPLE))
    return defense, net


def step(defense, net, encoded=None):
    data, taps = dataset(), {}
    (name,) = defense.taps(net, EXAMPLE)
    hook = net.get_submodule(name).register_forward_hook(lambda _m, _i, output: taps.update({name: output}))
    logits = net.train()(data.images())
    hook.remove()
    taps = {name: encoded} if encoded is not None else taps
    moment = Moment("main", 0, 1, torch.Generator())
    return Step(net, data.images(), data.labels, logits, taps, F.cross_entropy(logits, data.labels), moment, None)


def test_replaces_the_head_by_half_as_many_numbers_in_plain_data():
    edit = {"edit": "bottleneck-head", "layer": "17", "code": 2, "eval_noise": False}
    found = MID().edits(plain_cnn(), EXAMPLE)
    assert list(found) == [edit] and json.loads(json.dumps(list(found))) == [edit]
    assert MID(code=3, eval_noise=True).edits(plain_cnn(width=5), EXAMPLE)[0] == edit | {"code": 3, "eval_noise": True}
    assert MID().edits(plain_cnn(width=5), EXAMPLE)[0]["code"] == 2
    assert MID().edits(plain_cnn(width=1), EXAMPLE)[0]["code"] == 1


def test_charges_the_divergence_of_the_tapped_code_times_its_weight():
    defense, net = defended(weight=0.5)
    assert defense.taps(net, EXAMPLE) == ("17.encode",)
    # deviation log 2 at a spread of 5, means 1 and 2: 1/2 (1 + 4) + 2 (log(2)^2 / 2 - 1/2 - log log 2) = 2.713477
    term = defense.term(step(defense, net, torch.tensor([[1.0, 2.0, 5.0, 5.0]])))
    assert float(term.value) == pytest.approx(0.5 * 2.713477, abs=1e-5)
    assert float(term.notes["divergence"]) == pytest.approx(2.713477, abs=1e-5)
    assert not term.notes["divergence"].requires_grad


def test_the_charge_reaches_the_encoder_and_the_layers_before():
    defense, net = defended()
    defense.term(step(defense, net)).value.backward()
    assert net[17].encode.weight.grad.abs().sum() > 0 and net[0].weight.grad.abs().sum() > 0
    assert net[17].classify.weight.grad is None


def test_a_heavy_weight_makes_the_code_forget_the_image():
    defense, net = defended(weight=10.0)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    first = float(defense.term(step(defense, net)).notes["divergence"])
    for _ in range(80):
        now = step(defense, net)
        optimiser.zero_grad()
        (now.base + defense.term(now).value).backward()
        optimiser.step()
    last = float(defense.term(step(defense, net)).notes["divergence"])
    assert first > 8 and last < 0.1  # 2 numbers of deviation 0.0067 start at 2 (5 - 1/2) = 9 nats


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"weight": -0.1}, {"code": 0}])
def test_refuses_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match="expected"):
        MID(**settings)


def test_says_when_the_bottleneck_stayed_open_or_closed():
    """A deviation of 0.006715 and a mean of 0: (0.006715^2 - 1) / 2 - log 0.006715 = 4.5034 nats per number."""
    defense, net = defended()
    assert float(defense.term(step(defense, net)).notes["divergence_at_start"]) == pytest.approx(9.0067, abs=1e-3)
    assert defense.shortfall({"divergence": 4.5, "divergence_at_start": 9.0}) == ""
    assert defense.shortfall({"divergence": 0.1, "divergence_at_start": 9.0}) == ""
    said = defense.shortfall({"divergence": 4.6, "divergence_at_start": 9.0})
    assert "still open (divergence 4.6 nats, a fresh one has 9.0)" in said and "mid.weight, which is 0.01" in said
    assert "nan nats" in defense.shortfall({"divergence": float("nan"), "divergence_at_start": 9.0})
    assert "divergence 0.010 nats" in defense.shortfall({"divergence": 0.01, "divergence_at_start": 9.0})
    assert defense.shortfall({}) == ""  # a resumed training has no notes of what was done before
