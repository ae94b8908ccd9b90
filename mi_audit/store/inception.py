"""The Inception network that the FID of the literature is defined by, when it is on this machine."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from mi_audit.core.types import Features, Images

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
BATCH = 50  # fixed, because batched convolutions round differently


def inception_features(device: str) -> Callable[[Images], Features] | None:
    """The 2048 pool features of pytorch-fid's Inception v3 for images in [0, 1], or None when it is not at hand.

    It needs the package `pytorch-fid` and its file of weights in torch's hub folder. Nothing is downloaded: what an
    audit measures must not depend on whether a server could be reached.
    """
    if find_spec("pytorch_fid") is None or not (Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS).is_file():
        return None
    from pytorch_fid.inception import InceptionV3

    network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).to(device).eval()

    @torch.no_grad()
    def features(images: Images) -> Features:
        parts = [part.expand(-1, 3, -1, -1).to(device) for part in images.split(BATCH)]
        return torch.cat([network(part)[0].flatten(1).cpu() for part in parts])

    return features
