import math

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.core.target import TorchTarget
from mi_audit.nn import edits, freezing
from mi_audit.nn.anatomy import dissect, units
from mi_audit.nn.architectures import built_in
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.heads import BottleneckHead, LowRankHead, deviations, divergence, find_seat
from tests.nn.test_anatomy import plain_cnn

CLASSES = 30
LOW_RANK = {"edit": "low-rank-head", "rank": 3, "norm": "batch"}
BOTTLENECK = {"edit": "bottleneck-head", "code": 5, "eval_noise": False}


def tiny_vit():
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 32}
    return torchvision.models.VisionTransformer(32, 8, num_classes=CLASSES, **sizes)


def vgg_like():
    net = torchvision.models.VGG(torchvision.models.vgg.make_layers([8, "M", 8]), CLASSES, init_weights=False)
    net.avgpool, net.classifier[0], net.classifier[3] = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 16), nn.Linear(16, 24)
    net.classifier[6] = nn.Linear(24, CLASSES)
    return net


NETWORKS = {
    "torchvision resnet18": (lambda: torchvision.models.resnet18(weights=None, num_classes=CLASSES), "fc", 512),
    "torchvision vgg": (vgg_like, "classifier.6", 24),
    "torchvision vit": (tiny_vit, "heads.head", 24),
    "timm resnet": (lambda: timm.create_model("test_resnet", num_classes=CLASSES), "fc", 96),
    "timm resnetv2, a convolution": (
        lambda: timm.models.resnetv2.ResNetV2((1, 1), (32, 64), CLASSES, stem_chs=32, bottle_ratio=1.0),
        "head.fc",
        64,
    ),
    "timm convnext": (lambda: timm.create_model("test_convnext", num_classes=CLASSES), "head.fc", 64),
    "timm mobilenet": (
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=CLASSES),
        "classifier",
        1024,
    ),
    "built-in cnn": (lambda: built_in("cnn", CLASSES, 3), "8", 128),
    "built-in cnn-wide": (lambda: built_in("cnn-wide", CLASSES, 3), "7", 128),
    "built-in vgg": (lambda: built_in("vgg16-bn-small", CLASSES, 3), "classifier", 2048),
}
every_network = pytest.mark.parametrize(("build", "layer", "width"), NETWORKS.values(), ids=NETWORKS.keys())
EXAMPLE = torch.zeros(1, 3, 32, 32)


def edited(net, example=EXAMPLE, **edit):
    edits.apply(net, [{**edit, "layer": find_seat(net, example).name}])
    return net


@every_network
@pytest.mark.parametrize(("edit", "features"), [(LOW_RANK, 3), (BOTTLENECK, 5)], ids=["low-rank", "bottleneck"])
def test_replaces_the_last_linear_layer_and_attacks_see_the_narrow_features(build, layer, width, edit, features):
    net = build()
    seat = find_seat(net, EXAMPLE)
    assert (seat.name, seat.width, seat.num_classes) == (layer, width, CLASSES)
    before = units(net, EXAMPLE)
    edited(net, **edit)
    assert units(net, EXAMPLE) == before
    assert dissect(net, EXAMPLE).head == layer
    model = Classifier(net, size=32, channels=3, mean=(0.5,), std=(0.5,))
    assert (model.head_name, model.num_classes) == (f"{layer}.classify", CLASSES)
    images = torch.rand(2, 3, 32, 32)
    logits, seen = TorchTarget(model, CLASSES, model.head).logits_and_features(images)
    assert logits.shape == (2, CLASSES) and seen.shape == (2, features)
    assert torch.allclose(model.head(seen), logits, atol=1e-6)


@pytest.mark.parametrize("edit", [LOW_RANK, BOTTLENECK], ids=["low-rank", "bottleneck"])
def test_the_edits_of_a_manifest_rebuild_the_network(edit):
    trained = edited(plain_cnn(), torch.zeros(1, 3, 8, 8), **edit)
    trained.train()(torch.rand(6, 3, 8, 8))
    fresh = plain_cnn()
    edits.apply(fresh, [{**edit, "layer": "17"}])
    fresh.load_state_dict(trained.state_dict())
    images = torch.rand(3, 3, 8, 8)
    assert torch.equal(fresh.eval()(images), trained.eval()(images))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        plain_cnn().load_state_dict(trained.state_dict())


def test_the_low_rank_head_follows_its_formula():
    head = LowRankHead(2, 3, rank=1, norm="batch").eval()
    with torch.no_grad():
        head.norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
        head.norm.running_var.copy_(torch.tensor([4.0, 9.0]))
        head.reduce.weight.copy_(torch.tensor([[1.0, -1.0]]))
        head.reduce.bias.fill_(0.25)
        head.classify.weight.copy_(torch.tensor([[1.0], [2.0], [-1.0]]))
        head.classify.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    # ((3 - 1) / 2) - ((5 - 2) / 3) + 1/4 = 1/4
    squashed = math.tanh(0.25)
    got = head(torch.tensor([[3.0, 5.0]]))
    assert got[0].tolist() == pytest.approx([squashed, 1 + 2 * squashed, -squashed], abs=1e-5)


@pytest.mark.parametrize(("norm", "mixes"), [("batch", True), ("layer", False), ("none", False)])
def test_only_the_batch_norm_lets_images_of_a_batch_touch_each_other(norm, mixes):
    torch.manual_seed(0)
    head, features = LowRankHead(6, 4, rank=2, norm=norm).train(), torch.randn(5, 6)
    assert torch.allclose(head(features)[:2], head(features[:2]), atol=1e-6) is not mixes


def test_the_jacobian_of_the_logits_has_at_most_the_rank_of_the_head():
    torch.manual_seed(0)
    net = edited(plain_cnn(width=8).eval(), torch.zeros(1, 3, 8, 8), edit="low-rank-head", rank=2, norm="batch")
    net.double().eval()
    assert net(torch.rand(1, 3, 8, 8).double()).shape == (1, 4)
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(net, image).reshape(4, -1)
    assert torch.linalg.matrix_rank(jacobian) == 2
    plain = torch.autograd.functional.jacobian(plain_cnn(width=8).double().eval(), image).reshape(4, -1)
    assert torch.linalg.matrix_rank(plain) > 2


def test_the_bottleneck_answers_with_the_mean_in_evaluation_and_draws_in_training():
    torch.manual_seed(0)
    head, features = BottleneckHead(6, 4, code=3, eval_noise=False), torch.randn(2, 6)
    head.eval()
    expected = head.classify(head.encode(features)[:, :3])
    assert torch.equal(head(features), expected)
    head.train()
    assert not torch.equal(head(features), head(features))
    noisy = BottleneckHead(6, 4, code=3, eval_noise=True).eval()
    assert not torch.equal(noisy(features), noisy(features))


def test_the_code_has_the_mean_and_the_deviation_that_were_encoded():
    torch.manual_seed(0)
    head = BottleneckHead(1, 2, code=2, eval_noise=False).train()
    with torch.no_grad():
        head.encode.weight.zero_()
        head.encode.bias.copy_(torch.tensor([1.0, -2.0, 5.0, 7.0]))  # deviations log 2 and log(1 + e^2)
        head.classify.weight.copy_(torch.eye(2))
        head.classify.bias.zero_()
        drawn = head(torch.zeros(20000, 1))
    assert drawn.mean(dim=0).tolist() == pytest.approx([1, -2], abs=0.05)
    assert drawn.std(dim=0).tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(2))], rel=0.03)


@pytest.mark.parametrize(
    "head", [LowRankHead(4, 3, rank=2, norm="layer"), BottleneckHead(4, 3, code=2, eval_noise=True)]
)
def test_the_heads_keep_half_precision(head):
    assert head.to(torch.bfloat16)(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_head_takes_the_type_and_the_mode_of_the_network():
    net = edited(plain_cnn().double().eval(), torch.zeros(1, 3, 8, 8).double(), **BOTTLENECK)
    assert net[17].encode.weight.dtype == torch.float64 and not net[17].encode.training


def test_the_deviation_starts_near_zero():
    assert float(deviations(torch.zeros(1, 1))) == pytest.approx(0.0067, abs=1e-4)


def test_the_divergence_of_the_standard_normal_is_zero():
    spread = 5 + math.log(math.e - 1)  # softplus(spread - 5) = log(1 + e - 1) = 1
    assert float(divergence(torch.tensor([[0.0, 0.0, spread, spread]]))) == pytest.approx(0, abs=1e-6)


def test_the_divergence_by_hand():
    # deviation log 2 at spread 5. Row 1: mean 2 -> (4 + log(2)^2 - 1) / 2 - log log 2; row 2: mean 0; then the mean.
    part = (math.log(2) ** 2 - 1) / 2 - math.log(math.log(2))
    assert float(divergence(torch.tensor([[2.0, 5.0], [0.0, 5.0]]))) == pytest.approx(part + 1, abs=1e-6)


@given(mean=st.floats(-50, 50), spread=st.floats(-600, 600))
def test_the_divergence_and_its_gradient_hold_everywhere(mean, spread):
    encoded = torch.tensor([[mean, spread]], requires_grad=True)
    value = divergence(encoded)
    value.backward()
    mean, shifted = (np.float64(number) for number in encoded.detach()[0].numpy())
    shifted = np.float64(np.float32(shifted) - np.float32(5))
    deviation = np.logaddexp(0, shifted)  # 1e-263 at the far end: the logarithm is still a number
    slope = 1 / (1 + np.exp(-shifted))
    assert float(value.detach()) == pytest.approx(
        (mean**2 + deviation**2 - 1) / 2 - np.log(deviation), rel=1e-5, abs=1e-5
    )
    assert encoded.grad[0].tolist() == pytest.approx([mean, (deviation - 1 / deviation) * slope], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("shifted", [-9.5, -10.5])
def test_the_logarithm_of_the_deviation_keeps_its_digits_where_the_series_takes_over(shifted):
    deviation = np.log1p(np.exp(shifted))
    value = divergence(torch.tensor([[0.0, shifted + 5]]))
    assert float(value) == pytest.approx((deviation**2 - 1) / 2 - np.log(deviation), abs=3e-6)


def test_a_frozen_backbone_leaves_the_whole_head_to_learn():
    net = edited(plain_cnn(), torch.zeros(1, 3, 8, 8), **LOW_RANK)
    freezing.freeze(net, "linear-probe", torch.zeros(1, 3, 8, 8))
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {f"17.{part}.{kind}" for part in ("norm", "reduce", "classify") for kind in ("weight", "bias")}


class Outputs(nn.Module):
    """Two linear layers on pooled pixels; `combine` makes the output of what they give."""

    def __init__(self, combine):
        super().__init__()
        self.first, self.last, self.combine = nn.Linear(3, 6), nn.Linear(6, 4), combine
        self.other = nn.Linear(3, 4)

    def forward(self, images):
        pooled = images.mean(dim=(2, 3))
        other, hidden = self.other(pooled), self.first(pooled)
        return self.combine(hidden, self.last(hidden), other)


@pytest.mark.parametrize("combine", [lambda hidden, last, _: (hidden, last), lambda hidden, last, _: (last, hidden)])
def test_of_several_outputs_the_last_layer_makes_the_logits(combine):
    assert find_seat(Outputs(combine), EXAMPLE).name == "last"


def test_refuses_logits_that_go_around_the_head():
    with pytest.raises(ConfigError, match=r"through 'last' alone, got another way"):
        find_seat(Outputs(lambda _, last, other: (last + other) / 2), EXAMPLE)


def test_refuses_two_outputs_that_both_could_be_logits():
    with pytest.raises(ConfigError, match="expected one output with logits, got 2"):
        find_seat(Outputs(lambda _, last, other: (last, other)), EXAMPLE)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), r"pooled features before '0'"),
        (nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten()), r"a 1x1 convolution .* called '0', got Conv2d"),
    ],
)
def test_refuses_convolutions_that_see_positions(net, message):
    with pytest.raises(ConfigError, match=message):
        find_seat(net, EXAMPLE)


def test_refuses_an_edit_that_does_not_fit_the_network():
    with pytest.raises(ConfigError, match="called 'fc', got NoneType"):
        edits.apply(plain_cnn(), [{**LOW_RANK, "layer": "fc"}])
    with pytest.raises(ConfigError, match="expected a norm of batch, layer, none, got 'group'"):
        edits.apply(plain_cnn(), [{**LOW_RANK, "layer": "17", "norm": "group"}])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({**LOW_RANK, "rank": -1}, "a whole number from 1 as rank, got -1"),
        ({**LOW_RANK, "rank": 2.0}, "as rank, got 2.0"),
        ({**LOW_RANK, "rank": True}, "as rank, got True"),
        ({**BOTTLENECK, "code": 0}, "a whole number from 1 as code, got 0"),
        ({**BOTTLENECK, "eval_noise": "x"}, "true or false as eval_noise, got 'x'"),
    ],
)
def test_refuses_settings_of_a_damaged_manifest(edit, message):
    with pytest.raises(ConfigError, match=message):
        edits.apply(plain_cnn(), [{**edit, "layer": "17"}])


def test_finding_the_layer_changes_nothing():
    net = plain_cnn().train()
    net[4].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    find_seat(net, torch.zeros(1, 3, 8, 8))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert net.training and net[1].training and not net[4].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(part._forward_hooks for part in net.modules())
