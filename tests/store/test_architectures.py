import sys

import pytest
import torch

from mi_audit.core.errors import TargetError
from mi_audit.store.architectures import build, complete_name, defaults, fits, load_strictly, read_shapes, seeded


def shapes(net):
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


@pytest.mark.parametrize(
    ("given", "complete"),
    [
        ("resnet18", "timm:resnet18"),
        ("squeezenet1_0", "torchvision:squeezenet1_0"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ("built-in:cnn", "built-in:cnn"),
        ("py:a.b:c", "py:a.b:c"),
    ],
)
def test_names_are_completed_by_their_family(given, complete):
    assert complete_name(given, "flag") == complete


@pytest.mark.parametrize(
    "wrong", ["resnet19", "timm:nothing", "torchvision:fcn", "built-in:x", "hf-hub:a/b", "local-dir:/x"]
)
def test_names_that_nobody_knows_are_refused(wrong):
    with pytest.raises(TargetError, match="expected an architecture such as timm:NAME") as error:
        complete_name(wrong, "sidecar")
    assert repr(wrong) in str(error.value) and "(sidecar)" in str(error.value)


@pytest.mark.parametrize(
    "arch", ["timm:resnet18", "torchvision:squeezenet1_1", "built-in:cnn", "torchvision:mobilenet_v2"]
)
def test_classes_and_channels_are_read_from_the_tensors(arch):
    with torch.device("meta"):
        net = build(arch, num_classes=7, channels=1, size=None, kwargs={})
    found = read_shapes(arch, shapes(net), {})
    assert (found.num_classes, found.channels, found.size) == (7, 1, None)
    assert found.origins == {"num_classes": "tensor shapes", "channels": "tensor shapes"}
    assert fits(arch, shapes(net)) and not fits("timm:resnet34", shapes(net))


@pytest.mark.parametrize(("arch", "size"), [("timm:vit_tiny_patch16_224", 96), ("torchvision:vit_b_16", 64)])
def test_the_input_size_of_a_transformer_is_read_from_its_positions(arch, size):
    with torch.device("meta"):
        net = build(arch, num_classes=5, channels=3, size=size, kwargs={})
    assert read_shapes(arch, shapes(net), {}).size == size
    assert fits(arch, shapes(net))


def test_published_input_of_each_family():
    assert defaults("timm:vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    assert defaults("torchvision:efficientnet_b1").size == 240
    assert defaults("built-in:cnn").size == 32 and defaults("built-in:resnet18-small").size == 64
    assert defaults("py:a:b").size is None and defaults("py:a:b").mean == (0.0,)


def test_initial_weights_depend_on_the_seed_only():
    before = torch.random.get_rng_state()
    with seeded(1):
        first = build("built-in:cnn", num_classes=3, channels=1, size=None, kwargs={}).state_dict()
    torch.rand(3, generator=torch.Generator().manual_seed(5))
    with seeded(1):
        second = build("built-in:cnn", num_classes=3, channels=1, size=None, kwargs={}).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_loading_lists_at_most_five_of_each_problem():
    net = torch.nn.Linear(2, 2)
    tensors = {"weight": torch.zeros(3, 2), **{f"extra{index}": torch.zeros(1) for index in range(7)}}
    with pytest.raises(TargetError) as error:
        load_strictly(net, tensors, "py:x:y", "w.pt")
    assert str(error.value) == (
        "expected the weights of py:x:y, got w.pt with 1 missing: bias; 7 unexpected: extra0, extra1, extra2, extra3, "
        "extra4, ...; 1 of another shape: weight (3, 2) instead of (2, 2); "
        "correct --arch, --num-classes or --input-size"
    )


def test_the_batch_counter_of_old_checkpoints_may_be_missing():
    net = torch.nn.BatchNorm2d(2)
    tensors = {name: torch.full((2,), 0.5) for name in ("weight", "bias", "running_mean", "running_var")}
    load_strictly(net, tensors, "x", "y")
    assert net.running_mean[0] == 0.5


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("own_networks", "own_sibling"):
        sys.modules.pop(name, None)


def test_own_code_in_the_working_folder_is_imported_with_its_siblings(here):
    (here / "own_sibling.py").write_text("WIDTH = 6\n")
    (here / "own_networks.py").write_text(
        "import torch, own_sibling\n"
        "def small(num_classes=2, bias=True): return torch.nn.Linear(own_sibling.WIDTH, num_classes, bias=bias)\n"
        "def fixed(): return torch.nn.Linear(3, 4)\n"
        "def wrong(): return 5\n"
        "NUMBER = 3\n"
    )
    path = list(sys.path)
    net = build("py:own_networks:small", num_classes=5, channels=3, size=None, kwargs={"bias": False})
    assert net.weight.shape == (5, 6) and net.bias is None
    assert build("py:own_networks:fixed", num_classes=5, channels=3, size=None, kwargs={}).weight.shape == (4, 3)
    assert sys.path == path
    for factory, message in (
        ("wrong", "to return a torch.nn.Module, got int"),
        ("NUMBER", "expected a function 'NUMBER'"),
    ):
        with pytest.raises(TargetError, match=message):
            build(f"py:own_networks:{factory}", num_classes=5, channels=3, size=None, kwargs={})


def test_own_code_that_does_not_exist_is_named(here):
    with pytest.raises(TargetError, match=r"expected a module own_nothing in .* or installed"):
        build("py:own_nothing:x", num_classes=5, channels=3, size=None, kwargs={})


@pytest.mark.parametrize("arch", ["timm:resnet18", "torchvision:resnet18", "built-in:cnn"])
def test_arguments_a_factory_refuses_are_reported(arch):
    with pytest.raises(TargetError, match=rf"expected {arch} to be built, got the error '.*wings.*'; correct"):
        build(arch, num_classes=5, channels=3, size=None, kwargs={"wings": 2})
