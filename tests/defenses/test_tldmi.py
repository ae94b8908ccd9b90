import pytest
import torch
from torch.nn import functional as F

from mi_audit.core.defense import Phase, Slot
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.loft import LoFt
from mi_audit.defenses.mid import MID
from mi_audit.defenses.tldmi import TLDMI
from mi_audit.nn import edits
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.freezing import train_mode
from mi_audit.train.defended import only
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
    data, net = dataset(), plain_cnn()
    TLDMI(freeze="60%").freeze_layers(net, EXAMPLE)
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


def test_fills_the_freeze_and_leaves_loss_and_images_alone():
    assert TLDMI.slots == {Slot.FREEZE, Slot.PHASE}
    assert TLDMI().phases() == ()


def test_the_head_warms_up_alone_before_the_rest_learns():
    (phase,) = TLDMI(head_epochs=3).phases()
    assert phase == Phase(name="head-warm-up", when="before", epochs=3, keep="last", part="whole_head")


def test_the_part_that_warms_up_is_the_layer_that_makes_the_logits():
    model = Classifier(plain_cnn(), size=8, channels=3, mean=(0.5,), std=(0.5,))
    TLDMI(freeze="60%", head_epochs=1).freeze_layers(model, EXAMPLE)
    (phase,) = TLDMI(head_epochs=1).phases()
    assert model.get_submodule(str(phase.part)) is model.net[17]
    assert all(weight.requires_grad for weight in model.net[17].parameters())


@pytest.mark.parametrize("defense", [LoFt(rank=2, norm="layer"), MID()])
def test_all_of_a_replaced_head_warms_up_and_nothing_else(defense):
    net = plain_cnn()
    edits.apply(net, defense.edits(net, EXAMPLE))
    model = Classifier(net, size=8, channels=3, mean=(0.5,), std=(0.5,))
    (phase,) = TLDMI(head_epochs=1).phases()
    assert model.head_name == "17.classify" and model.get_submodule(str(phase.part)) is net[17]
    with only(model, phase.part):
        assert {name for name, p in net.named_parameters() if p.requires_grad} == {
            f"17.{name}" for name, _ in net[17].named_parameters()
        }


def test_refuses_a_negative_number_of_epochs():
    with pytest.raises(ConfigError, match="expected head_epochs of 0 or more, got -1"):
        TLDMI(head_epochs=-1)
