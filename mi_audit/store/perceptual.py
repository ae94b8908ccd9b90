"""The networks that LPIPS is defined by, when they are on this machine."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, VGG16_Weights

from mi_audit.core.types import Images
from mi_audit.store.files import hash_file

VERSION = "0.1"
BACKBONES: Mapping[str, str] = {  # by network, the file that torchvision would look for
    "alex": Path(AlexNet_Weights.IMAGENET1K_V1.url).name,
    "vgg": Path(VGG16_Weights.IMAGENET1K_V1.url).name,
}
Maps = tuple[Float[Tensor, "_ _ _ _"], ...]  # layers differ in channels, height and width


@dataclass(frozen=True, slots=True, eq=False)
class Perceptual:
    """LPIPS in two halves, so that an image passes through the network once and not once per pair.

    The distance of two images is the sum over layers of the mean over places of `weights . (first - second)^2`.

    Attributes:
        maps: Feature maps of images in [0, 1], layer by layer, of unit length at every place; on the network's device.
        weights: One for each channel of each layer.
    """

    maps: Callable[[Images], Maps]
    weights: tuple[Float[Tensor, " _"], ...]


def perceptual(net: str, device: str) -> Perceptual | str:
    """LPIPS (Zhang et al., CVPR 2018) on the backbone `alex` or `vgg`, or why it is not at hand.

    It needs the package `lpips`, which holds the linear layers, and the ImageNet weights of the backbone in torch's hub
    folder. Nothing is downloaded: what an audit measures must not depend on whether a server could be reached.
    """
    if find_spec("lpips") is None:
        return "the package lpips is not installed; install the extra `lpips`"
    name = BACKBONES[net]
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.is_file():
        return (
            f"the weights {name} are missing, and are never downloaded; place this file of torchvision into the folder "
            "`checkpoints` of torch's hub folder (usually ~/.cache/torch/hub)"
        )
    if not hash_file(file).startswith(file.stem.rpartition("-")[2]):
        return f"the file {name} in torch's hub folder is damaged: its hash is not the one in its name; place it again"
    import lpips

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it asks torchvision for the weights in an old way
        network = lpips.LPIPS(net=net, version=VERSION, verbose=False)
    return halves(network, device)


def halves(network: nn.Module, device: str) -> Perceptual:
    """The parts of an `lpips.LPIPS` network, which is moved to `device`."""
    network = network.to(device).eval()
    scaled, trunk = network.get_submodule("scaling_layer"), network.get_submodule("net")
    weights = tuple(weight.detach().flatten() for weight in network.get_submodule("lins").parameters())

    def maps(images: Images) -> Maps:
        found = trunk(scaled(2 * images.to(device).expand(-1, 3, -1, -1) - 1))
        return tuple(layer / (layer.norm(dim=1, keepdim=True) + 1e-10) for layer in found)

    return Perceptual(maps, weights)
