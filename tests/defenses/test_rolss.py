import pytest
import torch

from mi_audit.core.defense import Slot
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.rolss import RoLSS
from mi_audit.nn import edits, skips
from tests.nn.test_anatomy import plain_cnn, torchvision_net
from tests.nn.test_skips import network


def altered(name, size=64, **settings):
    (edit,) = RoLSS(**settings).edits(*torchvision_net(name, size))
    assert edit["edit"] == "skips" and set(edit["factors"].values()) == {0.0} and "idle_projections" not in edit
    return list(edit["factors"])


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 2), ("resnet34", 3), ("resnet50", 3), ("resnet101", 3), ("resnet152", 3), ("mobilenet_v2", 2)],
)
def test_counts_the_removed_skip_connections(name, count):
    assert len(altered(name)) == count


@pytest.mark.parametrize(
    ("name", "third"), [("resnet18", 1), ("resnet34", 2), ("resnet50", 2), ("resnet101", 5), ("resnet152", 8)]
)
def test_parity_also_removes_the_tail_of_the_third_stage(name, third):
    found = altered(name, parity=True)
    tail = [skip for skip in found if skip.startswith("layer3.")]
    blocks = len(torchvision_net(name)[0].layer3)
    assert tail == [f"layer3.{place}.residual" for place in range(blocks - third, blocks)]
    assert set(found) - set(tail) == set(altered(name))


def test_parity_is_for_residual_networks():
    with pytest.raises(ConfigError, match="expected a ResNet with a layer3"):
        altered("mobilenet_v2", parity=True)


def test_projections_can_stay():
    assert altered("resnet18", keep_projection=True) == ["layer4.1.residual"]


def test_a_stage_of_nothing_but_projections_that_stay_is_refused():
    net = network("torchvision", "resnet18")
    del net.layer4[1]
    with pytest.raises(ConfigError, match="keep_projection=false"):
        RoLSS(keep_projection=True).edits(net, torch.zeros(1, 3, 32, 32))


def test_networks_without_skip_connections_are_refused():
    with pytest.raises(ConfigError, match="not applicable"):
        RoLSS().edits(plain_cnn(), torch.zeros(1, 3, 8, 8))


def test_planning_leaves_the_network_alone_and_the_edit_closes_the_way_around_the_branch():
    net, images = network("torchvision", "resnet18"), torch.randn(1, 3, 64, 64)
    before = net(images)
    plan = RoLSS().edits(net, images)
    assert torch.equal(net(images), before) and not skips.installed(net)
    edits.apply(net, plan)
    for block in net.layer4:
        torch.nn.init.zeros_(block.bn2.weight)
        torch.nn.init.zeros_(block.bn2.bias)
    assert torch.equal(net(images), net.fc.bias[None]) and not torch.equal(before, net.fc.bias[None])


def test_the_whole_defense_is_surgery():
    assert RoLSS.slots == {Slot.SURGERY} and not RoLSS().phases()
