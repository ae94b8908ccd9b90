import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.core.errors import ConfigError
from mi_audit.nn.architectures import built_in
from mi_audit.nn.classifier import Classifier
from mi_audit.nn.freezing import freeze, parse, train_mode
from tests.nn.test_anatomy import Backwards, plain_cnn, torchvision_net

EXAMPLE = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("spec", "kind", "amount", "name"),
    [
        ("none", "none", 0, ""),
        ("0%", "none", 0, ""),
        ("80%", "units", 80, ""),
        ("12.5%", "units", 12.5, ""),
        ("params:80%", "params", 80, ""),
        ("stage:3", "stage", 3, ""),
        ("index:0", "index", 0, ""),
        ("module:net.layer3.0", "module", 0, "net.layer3.0"),
        ("linear-probe", "linear-probe", 0, ""),
        ("auto", "auto", 2, ""),
        ("auto:0.5", "auto", 0.5, ""),
    ],
)
def test_reads_the_grammar(spec, kind, amount, name):
    cut = parse(spec)
    assert (cut.spec, cut.kind, cut.amount, cut.name) == (spec, kind, amount, name)


@pytest.mark.parametrize(
    "spec",
    ["", "80", "101%", "-5%", "stage:0", "stage:1.5", "stage:", "index:1.5", "module:", "params:80", "most", "nan%"],
)
def test_refuses_what_is_not_in_the_grammar(spec):
    with pytest.raises(ConfigError, match="expected"):
        parse(spec)


@pytest.mark.parametrize(
    ("name", "size", "frozen", "total", "trainable"),
    [
        ("resnet18", 64, 6, 8, 75.7),
        ("resnet34", 64, 12, 16, 67.6),
        ("resnet50", 64, 12, 16, 69.8),
        ("resnet101", 64, 26, 33, 47.1),
        ("resnet152", 64, 40, 50, 40.3),
        ("densenet121", 64, 46, 58, 30.2),
        ("densenet201", 64, 78, 98, 30.8),
        ("convnext_tiny", 64, 14, 18, 60.5),
        ("vit_b_16", 224, 9, 12, 25.1),
    ],
)
def test_eighty_percent_of_depth(name, size, frozen, total, trainable):
    facts = freeze(*_with_spec(torchvision_net(name, size, num_classes=530), "80%"))
    assert (facts.units_frozen, facts.units_total) == (frozen, total)
    assert 100 * facts.parameters_trainable / facts.parameters_total == pytest.approx(trainable, abs=0.06)


@pytest.mark.parametrize(
    ("name", "classes", "spec", "trainable", "total"),
    [
        ("resnet18", 1000, "stage:3", 8.91, 11.69),
        ("resnet18", 1000, "index:6", 8.91, 11.69),
        ("resnet18", 1000, "module:layer3", 8.91, 11.69),
        ("resnet34", 530, "stage:3", 13.39, 21.56),
        ("resnet50", 530, "stage:3", 16.05, 24.59),
        ("resnet101", 530, "stage:3", 16.05, 43.59),
        ("resnet152", 530, "index:6", 16.05, 59.23),
        ("densenet121", 530, "index:9", 2.70, 7.50),
        ("densenet161", 530, "index:9", 10.66, 27.64),
        ("densenet169", 530, "index:9", 6.80, 13.37),
        ("densenet201", 530, "index:9", 8.00, 19.11),
        ("convnext_tiny", 530, "stage:3", 15.88, 28.23),
    ],
)
def test_the_cuts_of_the_paper(name, classes, spec, trainable, total):
    facts = freeze(*_with_spec(torchvision_net(name, 64, num_classes=classes), spec))
    assert facts.parameters_trainable / 1e6 == pytest.approx(trainable, abs=0.006)
    assert facts.parameters_total / 1e6 == pytest.approx(total, abs=0.006)


@pytest.mark.parametrize(
    ("spec", "units", "trainable"),
    [
        ("index:26", 8, 13.86),
        ("80%", 10, 9.14),
        ("index:20", 6, 15.04),
        ("index:27", 8, 11.50),
        ("index:30", 9, 9.14),
        ("index:34", 10, 6.77),
        ("index:37", 11, 4.41),
        ("index:40", 12, 2.05),
        ("index:41", 13, 2.05),
    ],
)
def test_the_cuts_of_vgg(spec, units, trainable):
    with torch.device("meta"):
        net = built_in("vgg16-bn-small", 1000, 3)
    facts = freeze(net, spec, torch.zeros(1, 3, 64, 64, device="meta"))
    assert facts.units_frozen == units
    assert (facts.parameters_total - facts.parameters_frozen) / 1e6 == pytest.approx(trainable, abs=0.006)
    assert facts.paper_cut is not None and "index:26" in facts.paper_cut


class bottleneck_IR(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        conv, norm = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut_layer = nn.MaxPool2d(1, stride) if inputs == outputs else nn.Sequential(conv, norm)
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, images):
        return self.res_layer(images) + self.shortcut_layer(images)


def face_network(blocks):
    """IR-50 or IR-152 for images of 64 pixels and 1000 people, without memory."""
    widths = [(64, 64), (64, 128), (128, 256), (256, 512)]
    sizes = [
        (inputs if not n else outputs, outputs, 1 if n else 2)
        for (inputs, outputs), count in zip(widths, blocks, strict=True)
        for n in range(count)
    ]
    with torch.device("meta"):
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)),
            nn.Sequential(*(bottleneck_IR(*size) for size in sizes)),
            nn.Sequential(
                nn.BatchNorm2d(512), nn.Dropout(), nn.Flatten(), nn.Linear(512 * 16, 512), nn.BatchNorm1d(512)
            ),
            nn.Linear(512, 1000),
        ).eval()


@pytest.mark.parametrize(
    ("blocks", "spec", "units", "trainable", "total", "share"),
    [
        ((3, 8, 36, 3), "index:46", 47, 17.83, 62.60, 28.5),
        ((3, 8, 36, 3), "80%", 40, 26.09, 62.60, 41.7),
        ((3, 4, 14, 3), "index:5", 6, 34.39, 35.44, 97.1),
        ((3, 4, 14, 3), "80%", 19, 20.19, 35.44, 57.0),
    ],
    ids=["IR152 paper", "IR152 80%", "FaceNet64 paper", "FaceNet64 80%"],
)
def test_the_cuts_of_face_networks(blocks, spec, units, trainable, total, share):
    facts = freeze(face_network(blocks), spec, torch.zeros(1, 3, 64, 64, device="meta"))
    assert (facts.units_frozen, facts.units_total) == (units, sum(blocks))
    assert facts.parameters_trainable / 1e6 == pytest.approx(trainable, abs=0.006)
    assert facts.parameters_total / 1e6 == pytest.approx(total, abs=0.006)
    assert 100 * facts.parameters_trainable / facts.parameters_total == pytest.approx(share, abs=0.06)
    assert facts.paper_cut == (
        "47 of 50 units (IR152: index:46)" if blocks[2] == 36 else "6 of 24 units (FaceNet64: index:5)"
    )


@pytest.mark.parametrize(
    ("spec", "left", "trainable"),
    [("92%", 1, 8.7), ("84%", 2, 16.9), ("75%", 3, 25.1), ("67%", 4, 33.4), ("50%", 6, 49.8)],
)
def test_the_last_blocks_of_a_vision_transformer(spec, left, trainable):
    facts = freeze(*_with_spec(torchvision_net("vit_b_16", 224, num_classes=530), spec))
    assert facts.units_total - facts.units_frozen == left
    assert facts.parameters_total / 1e6 == pytest.approx(86.2, abs=0.06)
    assert 100 * facts.parameters_trainable / facts.parameters_total == pytest.approx(trainable, abs=0.06)


@pytest.mark.parametrize(
    ("name", "last", "share"),
    [
        ("resnet18", "layer4.0", 57.8),
        ("resnet34", "layer4.1", 77.8),
        ("resnet50", "layer4.0", 62.0),
        ("resnet101", "layer4.0", 79.0),
        ("resnet152", "layer3.35", 74.3),
    ],
)
def test_eighty_percent_of_the_backbone_parameters(name, last, share):
    net, example = torchvision_net(name)
    facts = freeze(net, "params:80%", example)
    assert facts.last_frozen == last
    backbone = facts.parameters_total - net.fc.weight.numel() - net.fc.bias.numel()
    assert 100 * facts.parameters_frozen / backbone == pytest.approx(share, abs=0.06)


def test_the_share_counts_units_exactly_in_spite_of_rounding():
    assert freeze(*_with_spec(torchvision_net("resnet152"), "58%")).units_frozen == 29


def test_says_what_it_did_in_one_line():
    facts = freeze(*_with_spec(torchvision_net("resnet18"), "80%"))
    assert str(facts) == (
        "freeze 80%: 6 of 8 units (layer3.1 is the last), 23.8% of the parameters; 8.91 M of 11.69 M stay trainable; "
        "the paper froze 6 of 8 units (ResNet-18: stage:3)"
    )
    assert facts.as_mapping()["summary"] == str(facts)
    assert "conv1.weight" in facts.as_mapping()["frozen"]


def test_frozen_and_trainable_names_are_what_requires_grad_says():
    net = plain_cnn()
    facts = freeze(net, "60%", EXAMPLE)
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == set(facts.frozen)
    assert facts.last_frozen == "6" and net[-1].weight.requires_grad and net[9].weight.requires_grad
    assert facts.parameters_frozen + facts.parameters_trainable == facts.parameters_total


def test_none_freezes_nothing():
    facts = freeze(plain_cnn(), "none", EXAMPLE)
    assert facts.frozen == () and facts.units_frozen == 0 and facts.share_frozen == 0


def test_a_linear_probe_trains_the_head_alone():
    net = plain_cnn()
    freeze(net, "linear-probe", EXAMPLE)
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["17.weight", "17.bias"]


def test_a_module_cut_freezes_what_has_run_before_not_what_is_registered_before():
    net = Backwards()
    assert freeze(net, "module:first", EXAMPLE).frozen == ("first.weight", "first.bias")


def test_a_module_inside_a_wrapper_needs_no_prefix():
    net = Classifier(plain_cnn(), size=8, channels=3, mean=(0.5,), std=(0.5,))
    assert freeze(net, "module:3", EXAMPLE).frozen == (
        "net.0.weight",
        "net.0.bias",
        "net.1.weight",
        "net.1.bias",
        "net.3.weight",
        "net.3.bias",
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("10%", r"at least 20% \(one of 5 units\)"),
        ("params:1%", r"at least params:\d+(\.\d)?% \(the first unit\)"),
        ("stage:1", "units lie flat"),
        ("index:99", "index:0 to index:17"),
        ("module:layer3", "got 0 called 'layer3'; try"),
        ("module:17", "before the head '17'"),
        ("index:17", "before the head '17'"),
        ("auto:2", "got auto"),
    ],
)
def test_refuses_a_cut_that_cannot_be_made_and_leaves_the_network_alone(spec, message):
    net = plain_cnn()
    with pytest.raises(ConfigError, match=message):
        freeze(net, spec, EXAMPLE)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_refuses_a_stage_that_is_not_there():
    with pytest.raises(ConfigError, match="stage:1 to stage:4"):
        freeze(*_with_spec(torchvision_net("resnet18"), "stage:5"))


def test_refuses_a_network_of_one_layer():
    with pytest.raises(ConfigError, match="single layer"):
        freeze(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), "80%", EXAMPLE)


@pytest.mark.parametrize("spec", ["80%", "module:1", "linear-probe"])
def test_training_moves_neither_frozen_tensors_nor_their_statistics(spec):
    torch.manual_seed(0)
    net = plain_cnn()
    facts = freeze(net, spec, EXAMPLE)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        train_mode(net)
        optimiser.zero_grad()
        F.cross_entropy(net(torch.rand(8, 3, 8, 8)), torch.randint(4, (8,))).backward()
        optimiser.step()
    owners = {name.rpartition(".")[0] for name in facts.frozen}
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (name.rpartition(".")[0] in owners), name


def test_a_frozen_batch_norm_without_parameters_keeps_its_statistics():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False),
        nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    freeze(net, "50%", EXAMPLE)
    train_mode(net)
    assert not net[1].training and net[3].training


def test_dropout_is_off_in_frozen_blocks_only():
    blocks = [nn.Sequential(nn.Conv2d(width, 4, 3), nn.Dropout()) for width in (3, 4)]
    net = nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(), nn.Linear(64, 4))
    freeze(net, "50%", EXAMPLE)
    train_mode(net)
    assert [net[0][1].training, net[1][1].training, net[3].training] == [False, True, True]


def _with_spec(pair, spec):
    net, example = pair
    return net, spec, example
