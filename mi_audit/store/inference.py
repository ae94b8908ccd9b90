"""Which architecture a bare file of weights belongs to, by the names and shapes of its tensors."""

from mi_audit.core.errors import TargetError
from mi_audit.nn.architectures import NETWORKS
from mi_audit.store.architectures import Shapes, fits

# Networks of both libraries that compute the same from the same tensors are listed once, under torchvision. Those that
# hold the same tensors and compute something else (anti-aliased pooling, other padding) are all listed.
TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "vgg11_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19_bn",
    "densenet121",
    "densenet169",
    "densenet201",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "squeezenet1_0",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "alexnet",
    "convnext_tiny",
    "convnext_small",
    "swin_t",
    "vit_b_16",
)
TIMM = (
    "resnetaa50",
    "resnetblur50",
    "vgg16",
    "vgg16_bn",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "tf_mobilenetv3_small_100",
    "tf_mobilenetv3_large_100",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "tf_efficientnet_b0",
    "tf_efficientnet_b1",
    "tf_efficientnet_b2",
    "convnext_tiny",
    "convnext_small",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
)
CANDIDATES = (
    *(f"torchvision:{name}" for name in TORCHVISION),
    *(f"timm:{name}" for name in TIMM),
    *(f"built-in:{name}" for name in NETWORKS),
)


def infer(shapes: Shapes, source: object) -> tuple[str, ...]:
    """Every known architecture that the tensors fit, the commonest first.

    Raises:
        TargetError: None fits.
    """
    found = tuple(arch for arch in CANDIDATES if fits(arch, shapes))
    if not found:
        names = ", ".join(list(shapes)[:3])
        raise TargetError(
            f"expected the tensors of a common architecture, got {len(shapes)} tensors ({names}, ...) in {source}; "
            "add --arch timm:NAME, torchvision:NAME or py:module:factory"
        )
    return found
