import pytest
import torch

from mi_audit.core.errors import TargetError
from mi_audit.store.architectures import build
from mi_audit.store.manifest import Declared
from mi_audit.store.resolution import read_labels, resolve


def shapes(arch, channels=3):
    with torch.device("meta"):
        net = build(arch, num_classes=7, channels=channels, size=None, kwargs={})
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def test_every_fact_has_an_origin():
    facts, alternatives = resolve(Declared.of("flag", size=48), shapes("built-in:cnn", channels=1), "x")
    assert (facts.arch, facts.num_classes, facts.channels, facts.size) == ("built-in:cnn", 7, 1, 48)
    assert (facts.mean, facts.std, alternatives) == ((0.5,), (0.5,), ())
    assert {name: facts.origins[name] for name in ("arch", "num_classes", "channels", "size", "mean")} == {
        "arch": "tensor names and shapes",
        "num_classes": "tensor shapes",
        "channels": "tensor shapes",
        "size": "flag",
        "mean": "built-in default",
    }


def test_other_architectures_that_fit_are_kept():
    facts, alternatives = resolve(Declared(), shapes("torchvision:resnet18"), "x")
    assert facts.arch == "torchvision:resnet18" and alternatives == ("built-in:resnet18-small",)
    assert facts.origins["arch"] == "tensor names and shapes; also fits built-in:resnet18-small"


def test_a_stated_architecture_is_not_doubted():
    assert resolve(Declared.of("flag", arch="timm:resnet18"), shapes("torchvision:resnet18"), "x")[1] == ()


@pytest.mark.parametrize("origin", ["sidecar config.json", "metadata", "manifest in the metadata"])
def test_a_file_may_not_name_code_to_run(origin):
    with pytest.raises(TargetError, match="runs your own code; add --arch py:os:getcwd if you want that"):
        resolve(Declared.of(origin, arch="py:os:getcwd"), {}, "x")


def test_own_code_needs_an_input_size():
    with pytest.raises(TargetError, match=r"expected an input size .*; add --input-size"):
        resolve(Declared.of("flag", arch="py:examples.lenet5:lenet5"), {"fc.f7.weight": (10, 84)}, "x")


def test_labels_are_lines(tmp_path):
    (tmp_path / "labels.txt").write_text("Ada\n\n  Grace \n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ("Ada", "Grace")
    with pytest.raises(TargetError, match="expected a text file of class names"):
        read_labels(tmp_path / "none.txt")
