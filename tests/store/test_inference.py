import pytest
import torch

from mi_audit.core.errors import TargetError
from mi_audit.store.architectures import build
from mi_audit.store.inference import infer


def shapes(arch, num_classes=7, channels=3):
    with torch.device("meta"):
        net = build(arch, num_classes=num_classes, channels=channels, size=None, kwargs={})
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


@pytest.mark.parametrize(
    "arch",
    [
        "torchvision:vgg16_bn",
        "timm:vgg16_bn",
        "torchvision:squeezenet1_0",
        "torchvision:mobilenet_v2",
        "built-in:cnn-wide",
    ],
)
def test_tensors_of_one_architecture_only(arch):
    assert infer(shapes(arch), "x") == (arch,)


@pytest.mark.parametrize(
    ("arch", "found"),
    [
        ("timm:resnet18", ("torchvision:resnet18", "built-in:resnet18-small")),
        ("timm:tf_efficientnet_b0", ("timm:efficientnet_b0", "timm:tf_efficientnet_b0")),
        ("timm:resnetblur50", ("torchvision:resnet50", "timm:resnetaa50", "timm:resnetblur50")),
    ],
)
def test_tensors_that_several_architectures_hold_are_never_decided_here(arch, found):
    assert infer(shapes(arch, channels=1), "x") == found


def test_unknown_tensors_name_the_flag():
    with pytest.raises(TargetError, match=r"got 1 tensors \(a, ...\) in x.safetensors; add --arch timm:NAME"):
        infer({"a": (1,)}, "x.safetensors")
