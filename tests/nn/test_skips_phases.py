import pytest
import torch
from torch import nn

from mi_audit.nn import skips, skips_phases
from tests.nn.test_skips import network
from tests.nn.test_skips_attention import torchvision_convnext

GATE = "features.5.0.layer_scale"


def test_switching_between_the_stages_of_a_training():
    torch.manual_seed(0)
    net, stock, images = (
        network("torchvision", "resnet18"),
        network("torchvision", "resnet18"),
        torch.randn(2, 3, 32, 32),
    )
    factors = {"layer4.0.residual": 0.0, "layer4.1.residual": 0.2}
    skips.scale(net, factors=factors, idle_projections=True)
    skips_phases.switch(net, full=True)
    assert torch.equal(net(images), stock(images))
    skips.scale(stock, factors=factors)
    for _ in range(2):  # the second time as on a resume
        skips_phases.switch(net, full=False)
        assert torch.equal(net(images), stock(images))
        part = net.layer4[0].downsample
        assert not any(p.any() or p.requires_grad for p in part.parameters()) and not part[1].running_mean.any()
    assert net.layer4[1].conv1.weight.requires_grad


@pytest.mark.parametrize("public", [0.002, 0.4])
def test_closed_gates_open_with_the_skips_and_not_before(public):
    """They stay as public training left them while there are skips; what the second stage made of them is kept."""
    net = torchvision_convnext()
    skips.scale(net, factors={"features.5.0.residual": 0.0}, idle_projections=True)
    gate = net.get_parameter(GATE)
    nn.init.uniform_(gate, 0.9 * public, 1.1 * public)
    whole = gate.detach().clone()
    skips.reopen(net)
    skips_phases.switch(net, full=True)
    assert torch.equal(gate, whole)
    skips_phases.switch(net, full=False)
    assert torch.equal(gate, whole if public == 0.4 else torch.ones_like(gate))
    nn.init.constant_(gate, 0.05)
    skips_phases.switch(net, full=False)
    assert torch.equal(gate, torch.full_like(gate, 0.05))


@pytest.mark.parametrize("times", [1, 2])  # as on a resume in every phase
def test_skips_are_whole_until_the_last_full_phase_has_passed(times):
    net, factors = network("torchvision", "resnet18"), []
    skips.scale(net, factors={"layer4.1.residual": 0.2})
    phases = ("head-warm-up", "another", "full", "one between", "main", "one after")
    for phase in phases:
        for _ in range(times):
            skips_phases.begin(net, phase, last_full="full")
            factors.append(net.layer4[1].skip_scaling.factors["residual"])
    assert factors == [1.0] * 3 * times + [0.2] * 3 * times
