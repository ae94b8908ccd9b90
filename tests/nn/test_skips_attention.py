"""Every family of transformers and ConvNeXts in both libraries, as small as the libraries build them."""

import copy
import json
from functools import cache

import pytest
import timm
import torch
from torch import nn
from torchvision.models import ConvNeXt, MaxVit, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from mi_audit.nn import edits, skips

TWO = ("attention", "mlp")
PARTS = ("window_attention", "window_mlp", "grid_attention", "grid_mlp")
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 8, "num_heads": 2, "num_classes": 5}
TIMM_SWIN = {
    "img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (1, 1, 1, 2), "num_heads": (1, 2, 2, 4),
    "num_classes": 5,
}  # fmt: skip


def torchvision_swin(**options):
    return SwinTransformer(
        [4, 4], 16, [1, 1, 1, 2], [1, 2, 2, 4], [4, 4], num_classes=5, stochastic_depth_prob=0.2, **options
    )


def torchvision_convnext():
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 2)]
    return ConvNeXt(stages, 0.2, num_classes=5)


def timm_net(name, **options):
    return timm.create_model(name, num_classes=options.pop("num_classes", 5), drop_path_rate=0.2, **options)


class Encoder(nn.Module):
    """A classifier of patches over PyTorch's own encoder."""

    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
        self.patches, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 5)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, images):
        return self.head(self.encoder(self.patches(images).flatten(2).mT).mean(dim=1))


# name -> network, side of its images, blocks of the last stage with their adds, in order
NETS = {
    "torch-encoder": (lambda: Encoder(norm_first=True), 32, {"encoder.layers.3": TWO}),
    "torchvision-vit": (
        lambda: VisionTransformer(32, 8, 8, 2, 16, 32, num_classes=5), 32,
        {f"encoder.layers.encoder_layer_{place}": TWO for place in (6, 7)},
    ),
    "timm-deit": (
        lambda: timm_net("deit_tiny_distilled_patch16_224", **TIMM_VIT), 32, {"blocks.6": TWO, "blocks.7": TWO},
    ),
    "timm-deit3": (lambda: timm_net("deit3_small_patch16_224", **TIMM_VIT), 32, {"blocks.6": TWO, "blocks.7": TWO}),
    "timm-vit": (
        lambda: timm_net("vit_tiny_patch16_224", **TIMM_VIT | {"depth": 12}), 32,
        {f"blocks.{n}": TWO for n in (9, 10, 11)},
    ),
    "timm-respost": (
        lambda: timm_net(
            "vit_tiny_patch16_224", block_fn=timm.models.vision_transformer.ResPostBlock, init_values=1e-5, **TIMM_VIT,
        ), 32, {"blocks.6": TWO, "blocks.7": TWO},
    ),
    "torchvision-swin": (torchvision_swin, 64, {"features.7.0": TWO, "features.7.1": TWO}),
    "torchvision-swin-v2": (
        lambda: torchvision_swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2), 64,
        {"features.7.0": TWO, "features.7.1": TWO},
    ),
    "timm-swin": (
        lambda: timm_net("swin_tiny_patch4_window7_224", **TIMM_SWIN), 64,
        {"layers.3.blocks.0": TWO, "layers.3.blocks.1": TWO},
    ),
    "timm-swin-v2": (
        lambda: timm_net("swinv2_tiny_window8_256", **TIMM_SWIN), 64,
        {"layers.3.blocks.0": TWO, "layers.3.blocks.1": TWO},
    ),
    "torchvision-convnext": (torchvision_convnext, 64, {"features.5.0": ("residual",), "features.5.1": ("residual",)}),
    "timm-convnext": (
        lambda: timm_net("test_convnext"), 64, {"stages.3.blocks.0": ("residual",), "stages.3.blocks.1": ("residual",)},
    ),
    "timm-convnext-v2": (lambda: timm_net("test_convnext2"), 64, {"stages.3.blocks.0": ("residual",)}),
    "timm-convnext-conv-mlp": (
        lambda: timm_net("test_convnext", conv_mlp=True), 64,
        {"stages.3.blocks.0": ("residual",), "stages.3.blocks.1": ("residual",)},
    ),
    "torchvision-maxvit": (
        lambda: MaxVit((64, 64), 8, 2, [8, 16, 16, 16], [1, 1, 1, 1], 8, 0.2, num_classes=5), 64,
        {
            "blocks.3.layers.0.layers.MBconv": ("mb",),
            "blocks.3.layers.0.layers.window_attention": PARTS[:2],
            "blocks.3.layers.0.layers.grid_attention": PARTS[2:],
        },
    ),
    "timm-maxvit": (
        lambda: timm_net("test_maxvit"), 160,
        {
            "stages.3.blocks.0.conv": ("mb",),
            "stages.3.blocks.0.attn_block": PARTS[:2],
            "stages.3.blocks.0.attn_grid": PARTS[2:],
        },
    ),
    "timm-maxvit-nchw": (
        lambda: timm_net(
            "maxvit_rmlp_pico_rw_256", img_size=64, embed_dim=(32,) * 4, depths=(1,) * 4, stem_width=8,
            transformer_use_nchw_attn=True, transformer_window_size=(2, 2), transformer_grid_size=(2, 2),
            transformer_init_values=1e-6,
        ), 64,
        {
            "stages.3.blocks.0.conv": ("mb",),
            "stages.3.blocks.0.attn_block": PARTS[:2],
            "stages.3.blocks.0.attn_grid": PARTS[2:],
        },
    ),
    "timm-coatnet": (lambda: timm_net("test_coatnet"), 160, {"stages.3.blocks.0": TWO}),
    "timm-coatnext": (
        lambda: timm_net(
            "coatnext_nano_rw_224", img_size=64, embed_dim=(32,) * 4, depths=(1,) * 4, stem_width=8,
        ), 64, {"stages.3.blocks.0": TWO},
    ),
}  # fmt: skip


@cache
def built(name):
    torch.manual_seed(0)
    net, size = NETS[name][0](), NETS[name][1]
    for parameter in net.parameters():  # heads and norms that start at zero would hide what the blocks do
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net, torch.rand(2, 3, size, size)


def fresh(name):
    net, images = built(name)
    return copy.deepcopy(net), images


def run(net, images, *, training):
    """Logits with the same random draws every time; running statistics stay as they are."""
    torch.manual_seed(1)
    kept = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        logits = net.train(training)(images)
    net.load_state_dict(kept)
    return logits


@pytest.mark.parametrize("name", NETS)
def test_the_last_stage_of_every_family_is_found(name):
    net, images = fresh(name)
    last = skips.last_stage(skips.find(net, images[:1]))
    assert [(skip.block, skip.add) for skip in last] == [(b, add) for b, adds in NETS[name][2].items() for add in adds]


@pytest.mark.parametrize("name", NETS)
def test_factors_of_one_change_no_bit_and_no_name(name):
    net, images = fresh(name)
    found = {skip.name for skip in skips.find(net, images[:1])}
    before, names = [run(net, images, training=mode) for mode in (False, True)], list(net.state_dict())
    skips.scale(net, factors=dict.fromkeys(found, 0.5))
    assert list(net.state_dict()) == names
    assert not torch.equal(run(net, images, training=False), before[0])
    skips.set_factors(net, dict.fromkeys(found, 1.0))
    assert torch.equal(run(net, images, training=False), before[0])
    assert torch.equal(run(net, images, training=True), before[1])


BRANCH_ENDS = {  # the last layer with weights of a branch, by the end of the name of its add: the first that exists
    "attention": ("self_attention.out_proj", "self_attn.out_proj", "attn_layer.1.merge", "attn.proj"),
    "mlp": ("linear2", "mlp_layer.3", "mlp.fc2", "mlp.3"),
    "residual": ("block.5", "mlp.fc2"),
    "mb": ("layers.conv_c", "conv3_1x1", "mlp.fc2"),
}
NORMED = {"attention": "norm1", "mlp": "norm2"}  # of blocks whose branches end in a norm


def branch_end(block, add):
    kind = add.rpartition("_")[2]
    stock = type(block).__mro__[1].__name__
    names = [NORMED[kind]] if "V2" in stock or "Post" in stock else BRANCH_ENDS[kind]
    parts = dict(block.named_modules())
    return next(parts[name] for name in names if name in parts)


def input_shape(net, block, images):
    seen = []
    hook = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    run(net, images, training=False)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("name", "where", "add"), [(name, b, add) for name in NETS for b, adds in NETS[name][2].items() for add in adds]
)
def test_a_factor_of_zero_leaves_nothing_but_the_branch(name, where, add):
    net, images = fresh(name)
    skips.scale(net, factors={f"{where}.{add}": 0.0}, idle_projections=True)
    block = net.get_submodule(where).eval()
    end = branch_end(block, add)
    for parameter in end.parameters():
        torch.nn.init.zeros_(parameter)
    first, second = torch.rand(2, *input_shape(net, block, images))
    with torch.no_grad():
        assert torch.equal(block(first), block(second))
        if add.endswith(("mlp", "residual", "mb")):
            assert not block(first).any()
        skips.set_factors(net, {f"{where}.{add}": 1.0})
        assert not torch.equal(block(first), block(second))


@pytest.mark.parametrize("name", NETS)
def test_a_small_factor_turns_stochastic_depth_off_and_a_large_one_leaves_it(name):
    net, images = fresh(name)
    where, adds = next(reversed(NETS[name][2].items()))
    block = net.get_submodule(where)
    shape = input_shape(net, block, images)
    skips.scale(net, factors={f"{where}.{add}": 0.4 for add in adds})
    droppers = [part for part in block.modules() if type(part).__name__ in ("DropPath", "StochasticDepth")]
    for part in block.modules():
        if part in droppers:
            setattr(part, "p" if hasattr(part, "p") else "drop_prob", 0.5)
        elif isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    features = torch.rand(shape)
    torch.manual_seed(2)
    assert torch.equal(block.train()(features), block(features))
    skips.set_factors(net, {f"{where}.{add}": 0.5 for add in adds})
    assert bool(droppers) == any(not torch.equal(block(features), block(features)) for _ in range(5))


@pytest.mark.parametrize("name", NETS)
def test_the_edit_repeats_on_a_fresh_network(name):
    (net, images), (again, _) = fresh(name), fresh(name)
    last = skips.last_stage(skips.find(net, images[:1]))
    edit = skips.edit({skip.name: 0.0 for skip in last})
    edits.apply(net, [edit])
    edits.apply(again, [json.loads(json.dumps(edit))])
    again.load_state_dict(net.state_dict())
    assert torch.equal(run(net, images, training=False), run(again, images, training=False))


@pytest.mark.parametrize(
    ("name", "where", "gates"),
    [
        ("torchvision-convnext", "features.5.0", {"residual": "layer_scale"}),
        ("timm-convnext", "stages.3.blocks.0", {"residual": "gamma"}),
        ("timm-deit3", "blocks.7", {"attention": "ls1.gamma", "mlp": "ls2.gamma"}),
        ("timm-respost", "blocks.7", {"attention": "norm1.weight", "mlp": "norm2.weight"}),
        ("timm-swin-v2", "layers.3.blocks.1", {"attention": "norm1.weight", "mlp": "norm2.weight"}),
        ("timm-maxvit-nchw", "stages.3.blocks.0.attn_grid", {"grid_attention": "ls1.gamma", "grid_mlp": "ls2.gamma"}),
    ],
)
def test_an_untrained_gate_opens_where_its_skip_is_removed(name, where, gates):
    for add, gate in gates.items():
        torch.manual_seed(0)
        net = NETS[name][0]()
        skips.scale(net, factors={f"{where}.{add}": 0.0})
        block = net.get_submodule(where)
        assert torch.equal(block.get_parameter(gate), torch.ones_like(block.get_parameter(gate)))
        assert all(block.get_parameter(other).max() < 1e-3 for own, other in gates.items() if own != add)


@pytest.mark.parametrize("size", [1e-6, 1e-3, -0.05])
def test_a_gate_that_training_hardly_moved_opens_again_after_its_weights_are_loaded(size):
    net, stock = torchvision_convnext(), torchvision_convnext()
    torch.nn.init.uniform_(stock.features[5][0].layer_scale, min(0, 2 * size), max(0, 2 * size))
    skips.scale(net, factors={"features.5.0.residual": 0.0})
    net.load_state_dict(stock.state_dict())
    skips.reopen(net)
    assert torch.equal(net.features[5][0].layer_scale, torch.ones(24, 1, 1))
    assert torch.equal(net.features[5][1].layer_scale, stock.features[5][1].layer_scale)  # it has kept its skip


def test_a_gate_stays_with_its_skip_and_when_it_was_trained():
    for factor, trained in ((0.2, False), (0.0, True)):
        net, _ = torchvision_convnext(), torch.manual_seed(0)
        gate = net.features[5][0].layer_scale
        if trained:
            torch.nn.init.uniform_(gate)
        before = gate.detach().clone()
        skips.scale(net, factors={"features.5.0.residual": factor})
        assert torch.equal(gate, before)


def test_a_removed_projection_leaves_the_state_dict():
    net, images = fresh("timm-maxvit")
    skips.scale(net, factors={"stages.3.blocks.0.conv.mb": 0.0})
    assert not any(key.startswith("stages.3.blocks.0.conv.shortcut") for key in net.state_dict())
    assert run(net, images, training=False).isfinite().all()


def test_only_the_named_add_changes():
    net, images = fresh("timm-deit")
    before = run(net, images, training=False)
    outputs = []
    for add in TWO:
        net, _ = fresh("timm-deit")
        skips.scale(net, factors={f"blocks.7.{add}": 0.0})
        outputs.append(run(net, images, training=False))
    assert not torch.equal(*outputs) and not any(torch.equal(output, before) for output in outputs)


def test_an_encoder_with_norms_behind_the_sums_by_hand():
    """`norm2(k y + mlp(y))` with `y = norm1(k x + attention(x))`."""
    torch.manual_seed(0)
    net, x = Encoder(dropout=0.0), torch.rand(2, 9, 16)
    skips.scale(net, factors={"encoder.layers.0.attention": 0.3, "encoder.layers.0.mlp": 0.6})
    layer = net.encoder.layers[0]
    y = layer.norm1(0.3 * x + layer.self_attn(x, x, x)[0])
    torch.testing.assert_close(layer(x), layer.norm2(0.6 * y + layer.linear2(layer.linear1(y).relu())))
