import pytest
import torch
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.nn import edits
from mi_audit.nn.edits import SEAL, apply, seal, structural

WIDEN = {"edit": "widen", "name": "1", "by": 2}
API = {"edit": "output", "rule": "label-only"}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(edits, "EDITS", {"widen": widen})


def widen(net, *, name, by):
    net._modules[name] = nn.Linear(4, 3 * by)


def network():
    return nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))


def test_edits_are_repeated_and_sealed():
    net = network()
    apply(net, [WIDEN, API])
    assert net[1].out_features == 6
    assert torch.equal(net.state_dict()[SEAL], seal([WIDEN])) and SEAL not in dict(net.named_parameters())


def test_without_edits_of_the_network_there_is_no_seal():
    net = network()
    apply(net, [API])
    assert SEAL not in net.state_dict() and structural([API, WIDEN]) == (WIDEN,)


def test_the_seal_stands_for_all_edits_in_order():
    one, other = network(), network()
    apply(one, [WIDEN])
    apply(one, [{**WIDEN, "by": 1}], [WIDEN])
    apply(other, [WIDEN, {**WIDEN, "by": 1}])
    assert torch.equal(one.state_dict()[SEAL], other.state_dict()[SEAL])
    assert not torch.equal(seal([WIDEN]), seal([WIDEN, WIDEN]))
    assert torch.equal(seal([{"by": 2, "edit": "widen", "name": "1"}]), seal([WIDEN]))  # order of keys


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"edit": "shrink"}, "expected an edit of widen, got 'shrink'; update mi-audit"),
        ({"edit": "widen", "name": "1", "size": 2}, "expected the settings of the edit 'widen', got .*size"),
    ],
)
def test_a_manifest_of_another_version_is_refused(edit, message):
    with pytest.raises(ConfigError, match=message):
        apply(network(), [edit])
