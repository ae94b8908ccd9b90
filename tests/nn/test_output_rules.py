import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.core.errors import ConfigError
from mi_audit.nn.edits import apply
from mi_audit.nn.output_rules import (
    RULES,
    LabelOnly,
    OutputNoise,
    ReverseSigmoid,
    Rounding,
    Temperature,
    TopK,
    answer,
)
from tests.toy import classifier

P = torch.tensor([[0.6, 0.25, 0.1, 0.05]])
LOGITS = P.log()
QUIET = [rule for rule in RULES.values() if rule is not OutputNoise]

rows = st.lists(st.lists(st.floats(-12, 12, width=32), min_size=6, max_size=6), min_size=1, max_size=4)


def close(released, expected):
    torch.testing.assert_close(released, torch.tensor([expected]), atol=2e-4, rtol=0)


def test_label_only_is_one_hot():
    assert LabelOnly()(LOGITS).tolist() == [[1, 0, 0, 0]]


def test_top_k_hides_the_rest():
    close(TopK(k=2)(LOGITS), [0.6, 0.25, 0, 0])
    close(TopK(k=2, renormalise=True)(LOGITS), [0.6 / 0.85, 0.25 / 0.85, 0, 0])
    close(TopK(k=9)(LOGITS), P[0].tolist())


def test_rounding_keeps_decimals_and_may_leave_nothing():
    exact = torch.tensor([[0.614, 0.236, 0.101, 0.049]]).log()
    close(Rounding(decimals=2)(exact), [0.61, 0.24, 0.1, 0.05])
    assert Rounding(decimals=1)(torch.zeros(1, 30)).sum() == 0  # a thirtieth rounds to 0.0
    uniform = Rounding(decimals=1, renormalise=True)(torch.zeros(1, 30))
    torch.testing.assert_close(uniform, torch.full((1, 30), 1 / 30))
    thirds = Rounding(decimals=1, renormalise=True)(torch.tensor([[0.62, 0.24, 0.14]]).log())
    torch.testing.assert_close(thirds, torch.tensor([[6 / 9, 2 / 9, 1 / 9]]))


def test_temperature_two_takes_the_square_root_of_the_odds():
    close(Temperature(temperature=2.0)(torch.tensor([[9.0, 1.0]]).log()), [0.75, 0.25])  # odds 9 become 3


def test_reverse_sigmoid_by_hand():
    # p = 0.1: sigmoid(0.1 * ln(1/9)) = 1 / (1 + 9^0.1) = 1 / 2.24573 = 0.445289; 0.1 + 0.054711 = 0.154711;
    # p = 0.9 is its mirror image, 0.845289, and the sum is one.
    close(ReverseSigmoid()(torch.tensor([[0.9, 0.1]]).log()), [0.845289, 0.154711])
    # gamma = 1 and beta = 1 turn every p into 1/2; beta = 0.5 goes half the way.
    close(ReverseSigmoid(beta=0.5, gamma=1.0)(torch.tensor([[0.9, 0.1]]).log()), [0.7, 0.3])


def test_reverse_sigmoid_lifts_an_unlikely_class_but_not_above_the_prediction():
    p = torch.tensor([[0.12, 0.11, 0.11, 0.11, 0.11, 0.11, 0.11, 0.11, 0.11, 1e-8]])
    released = ReverseSigmoid()(p.log())
    # 1e-8: 1 / (1 + 1e8^0.1) = 1 / 7.30957 = 0.136807, so 0.363193; 0.12: (22/3)^0.1 = 1.22052, so 0.169653.
    unscaled = torch.tensor([0.363193, 0.169653])
    assert released.argmax() == 0
    assert (released[0, 0] / released[0, 9]).item() == pytest.approx((unscaled[0] / unscaled[1]).item(), abs=1e-3)


@pytest.mark.parametrize("rule", QUIET, ids=lambda rule: rule.name)
@given(rows=rows)
def test_the_predicted_class_keeps_the_largest_answer(rule, rows):
    logits = torch.tensor(rows)
    released = rule()(logits)
    predicted = released.gather(1, logits.argmax(dim=1, keepdim=True))
    assert bool((predicted == released.amax(dim=1, keepdim=True)).all())
    assert released.shape == logits.shape and released.dtype == torch.float32
    assert released.min() >= 0 and released.max() <= 1


@pytest.mark.parametrize("rule", [rule for rule in RULES.values() if rule not in (TopK, Rounding)])
@given(rows=rows)
def test_what_is_released_sums_to_one(rule, rows):
    torch.testing.assert_close(rule()(torch.tensor(rows)).sum(dim=1), torch.ones(len(rows)))


def test_noise_has_the_stated_deviation():
    logits = 0.02 * torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))  # p near 1/4: no clipping
    p, released = logits.softmax(dim=1), OutputNoise(deviation=0.02)(logits)
    # Renormalised, p + n becomes (p + n) / (1 + sum n), nearly p + n - p * sum n: variance
    # sigma^2 * (1 - 2p + 4p^2) = sigma^2 * 3/4 at p = 1/4, over four classes.
    assert (released - p).std().item() == pytest.approx(0.02 * 0.75**0.5, rel=0.03)
    assert abs((released - p).mean(dim=0)).max() < 2e-3


def test_asking_again_tells_nothing_new_but_another_key_or_another_image_does():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    rule = OutputNoise()
    again = torch.cat([rule(logits[3:]), rule(logits[:3])])[[2, 3, 4, 0, 1]]
    assert torch.equal(rule(logits), again)
    grains = (logits * 2**10).round() / 2**10
    torch.testing.assert_close(rule(grains + 1e-5), rule(grains))  # another batch size rounds logits differently
    assert not torch.equal(rule(logits), OutputNoise(secret=1)(logits))
    assert not torch.allclose(rule(logits), rule(logits + 0.01 * torch.arange(4)), atol=0.02)
    assert not torch.equal(rule(logits[:, [1, 0, 2, 3]])[:, [1, 0, 2, 3]], rule(logits))


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_an_edit_survives_a_manifest_and_changes_no_network(rule):
    edits = json.loads(json.dumps([rule().edit()]))
    assert answer(edits) == rule()
    net = classifier()
    before = net.state_dict().keys()
    apply(net, edits)
    assert net.state_dict().keys() == before


def test_softmax_is_released_without_a_rule():
    assert answer([]) is None and answer([{"edit": "group-norm", "modules": {}}]) is None


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([{"edit": "output", "rule": "blur"}], "expected an output rule of label-only, .* got 'blur'"),
        ([{"edit": "output", "rule": "top-k", "n": 3}], "expected the settings of the output rule 'top-k'"),
        ([LabelOnly().edit(), TopK().edit()], "expected one output rule, got label-only, top-k"),
    ],
)
def test_refuses_a_manifest_of_another_version(edits, message):
    with pytest.raises(ConfigError, match=message):
        answer(edits)


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (TopK, {"k": 0}),
        (Rounding, {"decimals": 0}),
        (Rounding, {"decimals": 7}),
        (Temperature, {"temperature": 1.0}),
        (Temperature, {"temperature": float("nan")}),
        (OutputNoise, {"deviation": 0.0}),
        (OutputNoise, {"deviation": 10.1}),
        (OutputNoise, {"deviation": 1e308}),
        (ReverseSigmoid, {"beta": 0.0}),
        (ReverseSigmoid, {"gamma": -1.0}),
        (OutputNoise, {"secret": 2**64}),
        (OutputNoise, {"secret": -(2**63) - 1}),
    ],
)
def test_refuses_settings_out_of_range(rule, settings):
    with pytest.raises(ConfigError, match=r"expected .* got .*; "):
        rule(**settings)


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        ("top-k", {"k": "3"}, "a whole number as k, got '3'"),
        ("top-k", {"k": 3.5}, "a whole number as k, got 3.5"),
        ("top-k", {"k": True}, "a whole number as k, got True"),
        ("top-k", {"renormalise": "no"}, "true or false as renormalise, got 'no'"),
        ("rounding", {"decimals": 2.5}, "a whole number as decimals, got 2.5"),
        ("temperature", {"temperature": "5"}, "a finite number as temperature, got '5'"),
        ("temperature", {"temperature": 10**400}, "a finite number as temperature"),
        ("output-noise", {"deviation": True}, "a finite number as deviation, got True"),
        ("output-noise", {"secret": "abc"}, "a whole number as secret, got 'abc'"),
        ("output-noise", {"secret": 2**80}, "a secret of 64 bits"),
        ("reverse-sigmoid", {"beta": [1.0]}, "a finite number as beta, got "),
    ],
)
def test_refuses_settings_of_other_types(rule, settings, message):
    with pytest.raises(ConfigError, match=f"expected {message}"):
        answer([{"edit": "output", "rule": rule, **settings}])


def test_whole_numbers_are_numbers_too():
    assert answer([{"edit": "output", "rule": "temperature", "temperature": 4}]) == Temperature(temperature=4.0)
