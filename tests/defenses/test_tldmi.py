import pytest
import torch
from torch.nn import functional as F

from mi_audit.core.errors import ConfigError
from mi_audit.defenses.tldmi import TLDMI
from mi_audit.nn.freezing import train_mode
from tests.nn.test_anatomy import plain_cnn
from tests.toy import dataset

EXAMPLE = torch.zeros(1, 3, 8, 8)


def test_freezes_four_of_five_units_and_reports_it():
    net = plain_cnn()
    facts = TLDMI().freeze_layers(net, EXAMPLE)
    assert (facts["units_frozen"], facts["units_total"], facts["last_frozen"]) == (4, 5, "9")
    assert [name for name, p in net.named_parameters() if p.requires_grad] == [
        "12.weight", "12.bias", "13.weight", "13.bias", "17.weight", "17.bias"
    ]  # fmt: skip


def test_the_private_data_leave_no_trace_in_the_frozen_part():
    torch.manual_seed(0)
    defense, data = TLDMI(freeze="60%"), dataset()
    net = plain_cnn()
    defense.freeze_layers(net, EXAMPLE)
    public = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        train_mode(net)
        optimiser.zero_grad()
        F.cross_entropy(net(data.images()), data.labels).backward()
        optimiser.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, public[name])}
    assert changed == {name for name in public if int(name.split(".")[0]) >= 9}


def test_none_trains_everything():
    net = plain_cnn()
    facts = TLDMI(freeze="none").freeze_layers(net, EXAMPLE)
    assert facts["frozen"] == [] and all(parameter.requires_grad for parameter in net.parameters())


def test_refuses_a_cut_outside_the_grammar_before_any_training():
    with pytest.raises(ConfigError, match=r"expected --freeze none \| 80% .* got 'most'"):
        TLDMI(freeze="most")
