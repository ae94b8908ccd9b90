import pytest
import torch

from mi_audit.core.defense import Slot
from mi_audit.core.errors import ConfigError
from mi_audit.core.target import TorchTarget
from mi_audit.defenses.rounding import RoundingOutput
from mi_audit.nn.output_rules import answer
from tests.toy import classifier, prototypes

SETTINGS = {"decimals": 1}


def test_one_edit_is_all_it_does():
    defense = RoundingOutput(**SETTINGS)
    assert defense.slots == {Slot.OUTPUT} and defense.kind == "output-side"
    assert list(defense.edits(classifier(), prototypes())) == [
        {"edit": "output", "rule": "rounding", "decimals": 1, "renormalise": False}
    ]


def test_an_api_answers_by_it_and_the_weights_do_not():
    net = classifier()
    rule = answer(RoundingOutput(**SETTINGS).edits(net, prototypes()))
    api, bare = TorchTarget(net, 4, net[1], answer=rule), TorchTarget(net, 4, net[1])
    images = prototypes() * torch.linspace(0.3, 1, 4)[:, None, None, None]
    assert torch.equal(api.scores(images), rule(bare.logits(images)))
    assert not torch.allclose(api.scores(images), bare.scores(images), atol=1e-4)
    assert torch.equal(api.logits(images), bare.logits(images))
    assert torch.equal(api.labels(images), bare.labels(images))


def test_refuses_settings_out_of_range():
    with pytest.raises(ConfigError, match=r"expected .* got"):
        RoundingOutput(decimals=0)
