"""Blocks of no known family: where the skip connection is, that scaling it is exact, and what is refused."""

import copy

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.nn import functional as F
from torchvision.models import shufflenet_v2_x0_5

from mi_audit.core.errors import ConfigError
from mi_audit.nn import edits, skips, skips_traced

WIDTH = 4


def conv(inputs=WIDTH, outputs=WIDTH):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Pair(nn.Module):
    """What the blocks below are made of."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.side, self.norm = conv(), conv(), conv(), nn.BatchNorm2d(WIDTH)
        self.project = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH))
        self.gamma = nn.Parameter(torch.rand(WIDTH))
        self.drop_path = DropPath(0.5)

    def branch(self, x):
        return self.second(F.relu(self.norm(self.first(x))))


class Plain(Pair):
    def forward(self, x):
        return F.relu(x + self.branch(x))


class InPlace(Pair):
    def forward(self, x):
        out = self.branch(x)
        out += self.norm(x)
        return out


class OntoTheInput(Pair):
    def forward(self, x):
        x = x * 1.5
        x += self.branch(x)
        return x


class Projected(Pair):
    def forward(self, x):
        return F.relu(self.branch(x) + self.project(x))


class TwoStepProjection(Pair):
    def forward(self, x):
        return torch.add(self.branch(x), self.norm(self.side(x)))


class InSeries(Pair):
    def forward(self, x, mask=None):  # noqa: ARG002
        x = x + self.first(self.norm(x))
        return x.add(self.second(x))


class SideBySide(Pair):
    def forward(self, x):
        return self.first(x) + (x + self.second(x))


class ByShape(Pair):
    """Its output is reshaped by numbers taken from the input, and its parameter is viewed."""

    def forward(self, x):
        batch, channels, height, width = x.shape
        rows = x.flatten(2) + (self.first(x) * self.gamma.view(1, -1, 1, 1)).flatten(2)
        return rows.reshape(batch, channels, height, width)


class ByMode(Pair):
    def forward(self, x):
        return x + F.dropout(self.first(x), 0.5, self.training)


class Dropping(Pair):
    def forward(self, x):
        return x + self.drop_path(self.first(x))


class Pooling(Pair):
    """A branch without weights beside the input itself, and one with, so that it is a block."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        x = x + self.pool(self.norm(x))
        return x + self.first(x)


class Shuffled(Pair):
    def __init__(self):
        super().__init__()
        self.small = conv(WIDTH // 2, WIDTH // 2)

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        return torch.cat((left, self.small(right)), dim=1)


class NestedOnly(Pair):
    """The sum inside its branch is no skip connection of the block."""

    def forward(self, x):
        inner = self.first(x)
        return x + (self.side(inner) + inner).relu()


class TwoPaths(Pair):
    def forward(self, x):
        return self.first(x) + self.second(x)


class TwoInputs(Pair):
    def forward(self, x):
        return x + self.norm(x) + self.first(x)


class LongPaths(Pair):
    def forward(self, x):
        return self.branch(x) + self.project(self.side(x))


class ByValue(Pair):
    def forward(self, x):
        return x + self.first(x) if x.mean() > 0 else x


class WithConstant(Pair):
    def forward(self, x):
        return x + self.first(x) * torch.full((1,), 2.0)


class OfTwo(Pair):
    def forward(self, x, other):
        return x + self.first(other)


class GivesTwo(Pair):
    def forward(self, x):
        return x + self.first(x), x


class Inside(Pair):
    def __init__(self):
        super().__init__()
        self.inner = Plain()

    def forward(self, x):
        return self.inner(x)


class Straight(Pair):
    def forward(self, x):
        return self.branch(x)


class Net(nn.Module):
    def __init__(self, block):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks, self.head = conv(3), nn.Sequential(block(), block()), nn.Linear(WIDTH, 5)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def added(block):
    handler = skips_traced.handler(block)
    return None if handler is None else {name: (add.kind, add.projection) for name, add in handler.adds(block).items()}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (Plain, {"add": ("identity", "")}),
        (InPlace, {"add": ("identity", "")}),
        (OntoTheInput, {"add": ("identity", "")}),
        (Projected, {"add": ("projection", "project")}),
        (TwoStepProjection, {"add": ("projection", "")}),
        (InSeries, {"add": ("identity", ""), "add_1": ("identity", "")}),
        (SideBySide, {"add_1": ("identity", "")}),
        (ByShape, {"add": ("identity", "")}),
        (ByMode, {"add": ("identity", "")}),
        (Dropping, {"add": ("identity", "")}),
        (Pooling, {"add": ("identity", ""), "add_1": ("identity", "")}),
        (Shuffled, {"cat": ("dense", "")}),
        (Straight, None),
    ],
)
def test_the_skip_connection_is_found(block, expected):
    assert added(block()) == expected


def test_a_sum_inside_a_branch_is_not_a_skip_of_the_block():
    assert added(NestedOnly()) == {"add_1": ("identity", "")}


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (TwoPaths, "several ways"),
        (TwoInputs, "several ways"),
        (LongPaths, "none of whose terms"),
        (ByValue, "while tracing"),
        (WithConstant, "constant"),
        (OfTwo, "missing 1 required"),
        (GivesTwo, "returns no tensor"),
        (Inside, "in its child inner"),
    ],
)
def test_what_cannot_be_told_is_refused(block, reason):
    with pytest.raises(ConfigError, match=reason):
        skips_traced.handler(block())


SCALABLE = (
    Plain, InPlace, OntoTheInput, Projected, TwoStepProjection, InSeries, SideBySide, ByShape, ByMode, Dropping,
    Pooling, Shuffled, NestedOnly,
)  # fmt: skip


def outputs(net, images=IMAGES):
    """Logits in evaluation and training, with the same random draws every time."""
    found = []
    for training in (False, True):
        torch.manual_seed(1)
        with torch.no_grad():
            found.append(copy.deepcopy(net).train(training)(images))
    return found


@pytest.mark.parametrize("block", SCALABLE)
def test_a_factor_of_one_is_bit_exact_and_the_edit_repeats(block):
    net = Net(block)
    names, stock = list(net.state_dict()), outputs(net)
    found = [skip.name for skip in skips.find(net, IMAGES)]
    skips.scale(net, factors=dict.fromkeys(found, 0.5))
    assert list(net.state_dict()) == names
    again = Net(block)
    edits.apply(again, [skips.edit(dict.fromkeys(found, 0.5))])
    assert all(map(torch.equal, outputs(net), outputs(again)))
    assert not torch.equal(outputs(net)[0], stock[0])
    skips.set_factors(net, dict.fromkeys(found, 1.0))
    assert all(map(torch.equal, outputs(net), stock))


@pytest.mark.parametrize("block", [block for block in SCALABLE if block is not Shuffled])
def test_a_factor_of_zero_leaves_nothing_but_the_branch(block):
    net = Net(block)
    last = skips.find(net, IMAGES)[-1]
    skips.scale(net, factors={last.name: 0.0})
    scaled = net.get_submodule(last.block)
    for layer in (scaled.first, scaled.second, scaled.side):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        assert not scaled.eval()(torch.rand(2, WIDTH, 8, 8)).any()
        assert last.kind == "projection" or copy.deepcopy(Net(block).blocks[1])(torch.rand(2, WIDTH, 8, 8)).any()


def test_the_factor_multiplies_the_shortcut():
    """`relu(k x + branch(x))` by hand."""
    net = Net(Plain)
    skips.scale(net, factors={"blocks.0.add": 0.3})
    block, x = net.blocks[0].eval(), torch.rand(2, WIDTH, 8, 8)
    torch.testing.assert_close(block(x), F.relu(0.3 * x + block.branch(x)))


def test_a_projection_goes_with_its_weights_and_can_be_kept():
    net = Net(Projected)
    skips.scale(net, factors={"blocks.0.add": 0.0})
    assert not any(key.startswith("blocks.0.project") for key in net.state_dict())
    block, x = net.blocks[0].eval(), torch.rand(2, WIDTH, 8, 8)
    assert torch.equal(block(x), F.relu(block.branch(x)))
    idle, stock = Net(Projected), outputs(Net(Projected))
    skips.scale(idle, factors={"blocks.0.add": 0.0}, idle_projections=True)
    assert torch.equal(idle.blocks[0].eval()(x), block(x))
    skips.set_factors(idle, {"blocks.0.add": 1.0})
    assert all(map(torch.equal, outputs(idle), stock))


def test_a_concatenation_keeps_the_first_channels_of_what_it_carries():
    """Two carried channels and a factor of one half: the first stays, the second is zero."""
    net = Net(Shuffled)
    skips.scale(net, factors={"blocks.0.cat": 0.5})
    x = torch.rand(2, WIDTH, 8, 8)
    given = net.blocks[0](x)
    assert torch.equal(given[:, 0], x[:, 0]) and not given[:, 1].any()
    assert torch.equal(given[:, 2:], net.blocks[0].small(x[:, 2:]))


def test_a_small_factor_turns_stochastic_depth_off():
    net = Net(Dropping)
    skips.scale(net, factors={"blocks.0.add": 0.4})
    block, x = net.blocks[0].train(), torch.rand(16, WIDTH, 8, 8)
    torch.testing.assert_close(block(x), 0.4 * x + block.first(x))
    skips.set_factors(net, {"blocks.0.add": 0.5})
    assert not torch.allclose(block(x), 0.5 * x + block.first(x))


def test_a_scaled_block_is_copied_whole_and_takes_its_input_alone():
    net = Net(InSeries)
    skips.scale(net, factors={"blocks.0.add": 0.2})
    twin, x = copy.deepcopy(net), torch.rand(2, WIDTH, 8, 8)
    skips.set_factors(twin, {"blocks.0.add": 0.9})
    assert skips.find(net, IMAGES)[0].factor == 0.2
    assert not torch.equal(twin.blocks[0](x), net.blocks[0](x))
    assert torch.equal(net.eval().blocks[0](x, mask=None), net.blocks[0](x))
    with pytest.raises(ConfigError, match="a call with mask"):
        net.blocks[0](x, mask=x)


def test_the_gradient_reaches_parameters_used_in_the_block_itself():
    net = Net(ByShape)
    skips.scale(net, factors={"blocks.0.add": 0.2})
    net(IMAGES).sum().backward()
    assert net.blocks[0].gamma.grad.any()


class Tampered(Plain):
    """Computes something else when it is traced than when it runs."""

    def forward(self, x):
        return x + self.branch(x) * (2.0 if isinstance(x, torch.fx.Proxy) else 1.0)


def test_a_block_that_computes_something_else_when_traced_is_refused():
    with pytest.raises(ConfigError, match="computes something else"):
        skips.find(Net(Tampered), IMAGES)


@pytest.mark.parametrize(
    ("build", "size", "kind"),
    [
        (lambda: shufflenet_v2_x0_5(num_classes=5), 64, "dense"),
        (lambda: timm.create_model("test_mambaout", num_classes=5), 64, "identity"),
        (lambda: timm.create_model("test_nfnet", num_classes=5), 64, "projection"),
        (lambda: timm.create_model("test_vit_relpos", num_classes=5), 160, "identity"),
    ],
)
def test_unknown_blocks_of_the_libraries_are_exact(build, size, kind):
    torch.manual_seed(0)
    net, images = build(), torch.rand(2, 3, size, size)
    stock, found = outputs(net, images), skips.find(net, images)
    assert {skip.kind for skip in found} == {kind}
    skips.scale(net, factors={skip.name: 0.5 for skip in found})
    skips.set_factors(net, {skip.name: 1.0 for skip in found})
    assert all(map(torch.equal, outputs(net, images), stock))
