import pytest
import torch

from mi_audit.core.errors import ConfigError
from mi_audit.defenses.rolss import RoLSS
from mi_audit.defenses.tts import TTS
from mi_audit.nn import edits
from mi_audit.nn.classifier import Classifier
from tests.nn.test_anatomy import torchvision_net
from tests.nn.test_skips import network

EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def prepared(defense):
    net = network("torchvision", "resnet18")
    edits.apply(net, defense.edits(net, EXAMPLE))
    return net


def test_it_alters_what_rolss_alters():
    for name in ("resnet34", "mobilenet_v2", "densenet121"):
        (ours,), (theirs,) = (defense.edits(*torchvision_net(name)) for defense in (TTS(), RoLSS()))
        assert ours["factors"] == theirs["factors"]
    assert list(TTS(keep_projection=True).edits(*torchvision_net("resnet18"))[0]["factors"]) == ["layer4.1.residual"]


def test_five_epochs_come_before_and_end_with_their_last_weights():
    (phase,) = TTS().phases()
    assert (phase.epochs, phase.when, phase.keep, phase.part) == (5, "before", "last", None)
    with pytest.raises(ConfigError, match="full_epochs >= 1"):
        TTS(full_epochs=0)


def test_the_first_stage_is_the_whole_network_and_the_second_that_of_rolss():
    defense, whole, removed = TTS(), network("torchvision", "resnet18"), prepared(RoLSS())
    net = prepared(defense)
    model = Classifier(net, size=32, channels=3, mean=(0.5,), std=(0.5,)).eval()
    defense.enter(model, defense.phases()[0].name)
    assert torch.equal(net(EXAMPLE), whole(EXAMPLE))
    net(EXAMPLE).sum().backward()
    assert net.layer4[0].downsample[0].weight.grad.any()
    for phase in ("main", "main", "another after it"):
        defense.enter(model, phase)
        assert torch.equal(net(EXAMPLE), removed(EXAMPLE))


def test_what_a_removed_projection_learned_is_not_published():
    net, defense = prepared(TTS()), TTS()
    defense.enter(net, defense.phases()[0].name)
    net.train()(EXAMPLE)
    defense.enter(net, "main")
    left = {name: value for name, value in net.state_dict().items() if name.startswith("layer4.0.downsample")}
    assert len(left) == 6
    assert all(torch.equal(v, torch.ones_like(v) if "var" in name else torch.zeros_like(v)) for name, v in left.items())
    assert not any(parameter.requires_grad for parameter in net.layer4[0].downsample.parameters())


def test_the_released_network_loads_into_a_fresh_one():
    net, fresh = prepared(TTS()), prepared(TTS())
    TTS().enter(net, "main")
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(EXAMPLE), net(EXAMPLE))


def test_a_head_warms_up_under_whole_skip_connections():
    defense, whole = TTS(), network("torchvision", "resnet18")
    net, images = prepared(defense), EXAMPLE
    for phase, full in (("head-warm-up", True), (defense.phases()[0].name, True), ("main", False), ("later", False)):
        defense.enter(net, phase)
        assert torch.equal(net(images), whole(images)) == full
