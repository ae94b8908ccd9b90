import pytest
import torch

from mi_audit.core.errors import ConfigError
from mi_audit.defenses.dp_sgd import DPSGD
from mi_audit.defenses.rolss import RoLSS
from mi_audit.defenses.ssf import SSF
from mi_audit.nn import edits, skips
from tests.nn.test_anatomy import torchvision_net
from tests.nn.test_skips import network


@pytest.mark.parametrize(
    ("name", "settings", "factor", "count"),
    [
        ("resnet34", {}, 0.2, 3),
        ("densenet121", {}, 0.01, 16),
        ("densenet121", {"k": 0.3}, 0.3, 16),
        ("mobilenet_v2", {"k": 0.6}, 0.6, 2),
    ],
)
def test_the_factors_of_the_last_stage(name, settings, factor, count):
    (edit,) = SSF(**settings).edits(*torchvision_net(name))
    assert list(edit["factors"].values()) == [factor] * count


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 1.0},
        {"k": -0.1},
        {"k": float("nan")},
        {"tts": -1},
        {"k": 0.0, "learnable": True},
        {"dense_mode": "truncate", "tts": 1},
        {"dense_mode": "truncate", "learnable": True},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError):
        SSF(**settings)


def test_a_second_stage_scales_what_the_first_trained_whole():
    net, stock, images = (
        network("torchvision", "resnet18"),
        network("torchvision", "resnet18"),
        torch.randn(2, 3, 32, 32),
    )
    defense = SSF(tts=3)
    edits.apply(net, defense.edits(net, images))
    assert [(phase.epochs, phase.when, phase.keep) for phase in defense.phases()] == [(3, "before", "last")]
    defense.enter(net, defense.phases()[0].name)
    assert torch.equal(net(images), stock(images))
    defense.enter(net, "main")
    assert not torch.allclose(net(images), stock(images))
    assert {skip.factor for skip in skips.last_stage(skips.find(net, images))} == {0.2}
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not SSF().phases()


def test_a_factor_of_zero_after_a_first_stage_keeps_the_projections_for_it():
    (edit,) = SSF(k=0.0, tts=1).edits(*torchvision_net("resnet18"))
    assert edit["idle_projections"] and "idle_projections" not in SSF(k=0.0).edits(*torchvision_net("resnet18"))[0]


def test_a_scaled_resnet_can_still_represent_every_function_of_the_whole_one():
    net, whole = network("torchvision", "resnet34"), network("torchvision", "resnet34")
    images, k = torch.randn(2, 3, 64, 64), 0.2
    blocks = len(net.layer4)
    edits.apply(net, SSF(k=k).edits(net, images))
    with torch.no_grad():
        for place, block in enumerate(net.layer4):
            block.conv1.weight.mul_(k**-place)  # in eval mode; in training the norm behind it does this by itself
            block.bn2.weight.mul_(k ** (place + 1))
            block.bn2.bias.mul_(k ** (place + 1))
        net.fc.weight.mul_(k**-blocks)
    torch.testing.assert_close(net(images), whole(images), rtol=1e-3, atol=1e-3)


def test_a_head_warms_up_under_whole_skip_connections():
    defense, whole = SSF(k=0.0, tts=1), network("torchvision", "resnet18")
    net, images = network("torchvision", "resnet18"), torch.randn(2, 3, 32, 32)
    edits.apply(net, defense.edits(net, images))
    for phase, full in (("head-warm-up", True), (defense.phases()[0].name, True), ("main", False), ("later", False)):
        defense.enter(net, phase)
        assert torch.equal(net(images), whole(images)) == full


def test_factors_learn_when_asked():
    net, images = network("torchvision", "resnet18"), torch.randn(2, 3, 32, 32)
    edits.apply(net, SSF(learnable=True).edits(net, images))
    assert [name for name, _ in net.named_parameters() if "skip_logit" in name] == [
        "layer4.0.skip_logit_residual", "layer4.1.skip_logit_residual"
    ]  # fmt: skip


def test_factors_that_learn_have_no_gradient_per_image():
    assert "learnable" in SSF(learnable=True).conflicts({"dp-sgd": DPSGD()})
    assert not SSF().conflicts({"dp-sgd": DPSGD()}) and not SSF(learnable=True).conflicts({"rolss": RoLSS()})
