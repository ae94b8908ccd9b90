"""LPIPS: how near reconstructions come to the private training images of the person, as people judge likeness."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mi_audit.core.errors import DataError
from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import ClassValue, Measurement
from mi_audit.nn.intervals import TOO_FEW, by_class, mean_interval, tables
from mi_audit.store.perceptual import VERSION, Maps, Perceptual, perceptual

PIXELS = 2**18  # of the images, and of the pairs of images, whose feature maps are in memory at once
LEAST = {"alex": 31, "vgg": 16}  # pixels across, below which nothing is left for the last layer


@dataclass(frozen=True, kw_only=True)
class LPIPS(Metric):
    """`mean over images x of min over private training images t of the class, LPIPS(x, t)`, in two networks.

    LPIPS (Zhang et al., CVPR 2018), version 0.1, is a distance between feature maps whose weights were fitted to what
    people find alike; images enter in [-1, 1]. Smaller is more leakage. The minimum asks for the best match; published
    code also takes the maximum, on inputs in [0, 1], under the same name. Values of the two networks, or of images of
    different sizes, cannot be compared. It needs the extra `lpips` and the weights of AlexNet and of VGG-16 in torch's
    hub folder, and has no value and a reason without; it is measured only when it is named.

    Raises:
        DataError: An attacked class has no private image.
    """

    names: ClassVar = ("lpips_alex_min_train", "lpips_vgg_min_train")
    unit: ClassVar = "perceptual distance"
    summary: ClassVar = "LPIPS distance to the most similar private image of the class, in two networks (when named)"
    default: ClassVar = False

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        return tuple(_measured(name, net, evidence) for name, net in zip(self.names, LEAST, strict=True))


def _measured(name: str, net: str, evidence: Evidence) -> Measurement:
    near, value, interval = _nearest(net, evidence), None, None
    rows: tuple[ClassValue, ...] = ()
    if isinstance(near, str):
        reason: str | None = near
    elif not near.isfinite().all():
        reason = "a distance is not finite"
    else:
        rows = by_class(near.double().numpy(), evidence.labels.cpu().numpy(), evidence.seeds.cpu().numpy())
        values, weights = tables(rows)
        value, interval = float(near.double().mean()), mean_interval(values, weights=weights)
        reason = None if interval else TOO_FEW
    return Measurement(
        name=name,
        protocol=f"{name}/image/all/none@lpips-{net}-v{VERSION}#train-{evidence.pixels.shape[-1]}px",
        value=value,
        unit=LPIPS.unit,
        count=len(evidence.labels),
        counted="images",
        interval=interval,
        reason=reason,
        leak_grows=False,
        per_class=rows,
    )


def _nearest(net: str, evidence: Evidence) -> Float[Tensor, " n"] | str:
    """The least distance of every reconstruction, or why there is none."""
    if not len(evidence.labels):
        return "no reconstruction"
    if evidence.pixels.shape[1:] != evidence.private.pixels.shape[1:]:
        return "reconstructions and private images differ in shape"
    if (across := min(evidence.pixels.shape[2:])) < LEAST[net]:
        return f"{LEAST[net]} pixels across are needed, got {across}"
    network = perceptual(net, evidence.device)
    return network if isinstance(network, str) else nearest_training(network, evidence)


def nearest_training(network: Perceptual, evidence: Evidence) -> Float[Tensor, " n"]:
    """LPIPS of every reconstruction to the most similar private image of its class, on the CPU."""
    nearest = torch.zeros(len(evidence.labels))
    size = max(1, PIXELS // evidence.pixels[0, 0].numel())
    for label in evidence.labels.unique():
        pool = evidence.private.pixels[evidence.private.labels == label].split(size)
        if not len(pool[0]):
            raise DataError(f"expected private images of class {int(label)}, got none; attack classes that have some")
        for mine in (evidence.labels == label).nonzero().squeeze(1).split(size):
            found = network.maps(evidence.pixels[mine].float() / 255)
            parts = (distances(network, found, network.maps(part.float() / 255), size) for part in pool)
            nearest[mine] = torch.stack([part.amin(dim=1) for part in parts]).amin(dim=0).cpu()
    return nearest


def distances(network: Perceptual, first: Maps, second: Maps, size: int) -> Float[Tensor, "n m"]:
    """LPIPS of all pairs, `size` pairs at once; differences are taken before squares, so that small ones survive."""
    rows, columns = len(first[0]), len(second[0])
    pairs = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(first[0].device).split(size)
    return torch.cat([_paired(network, first, second, part) for part in pairs]).view(rows, columns)


def _paired(network: Perceptual, first: Maps, second: Maps, pairs: Tensor) -> Float[Tensor, " p"]:
    mine, theirs = pairs.unbind(dim=1)
    layers = [
        torch.einsum("nchw,c->nhw", (one[mine] - other[theirs]).square(), weights).mean(dim=(1, 2))
        for one, other, weights in zip(first, second, network.weights, strict=True)
    ]
    return torch.stack(layers).sum(dim=0)
