"""How the verifier sees pictures: as unit vectors in which two pictures of one person lie close together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mi_audit.audit.pretrain import labelled_public
from mi_audit.audit.scene import Scene
from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError
from mi_audit.core.types import Features, Labels, Pixels
from mi_audit.nn.verification import within_class_whitening
from mi_audit.store.files import digest
from mi_audit.store.targets import LoadedModel
from mi_audit.store.weights import read_weights, write_weights

VERSION = 1  # raised when the same pictures would give another whitening
SEED = 54321
BATCH = 256
PICTURES = 5000  # most public pictures that the embedding is whitened with

Embed = Callable[[Pixels], Features]


@dataclass(frozen=True, slots=True, eq=False)
class Photographs:
    """Private pictures as the verifier remembers them.

    Attributes:
        labels: Of `n` pictures.
        features: Their unit vectors, `n` by the width of the verifier's last layer.
    """

    labels: Labels
    features: Features


def as_embedding(scene: Scene, model: LoadedModel) -> Embed:
    """Unit vectors of 8-bit pictures: the input of the last layer, whitened on labelled public data where there are.

    Raises:
        TargetError: A whitening in the cache is damaged.
    """
    model.classifier.to(scene.device)
    target = model.target()

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        parts = [target.features(part.to(scene.device).float() / 255).float().cpu() for part in pixels.split(BATCH)]
        return torch.cat(parts)

    try:
        public = labelled_public(scene.public)
    except ConfigError:
        return lambda pixels: F.normalize(features(pixels), dim=1)
    mean, matrix = _whitening(scene, model.sha256, public, features)
    return lambda pixels: F.normalize((features(pixels) - mean) @ matrix, dim=1)


def _whitening(scene: Scene, network: str, public: Dataset, features: Embed) -> tuple[Tensor, Tensor]:
    """Of the public pictures as `network` sees them, which every audit with both shares."""
    key = digest("whitening", VERSION, network, public.fingerprint, scene.size, len(public), list(public.classes))
    file = scene.cache.folder("verifiers", key) / "whitening.safetensors"
    if not file.is_file():
        rows = torch.randperm(len(public), generator=torch.Generator().manual_seed(SEED))[:PICTURES]
        mean, matrix = within_class_whitening(features(public.pixels[rows]), public.labels[rows])
        write_weights(file, {"mean": mean, "matrix": matrix}, {})
    kept, _ = read_weights(file)
    return kept["mean"], kept["matrix"]


def photographs(embed: Embed, data: Dataset, *groups: Tensor) -> list[Photographs]:
    """The given rows of `data`, group by group; a picture that is in several of them is looked at once."""
    rows = torch.cat(groups).unique()
    features = embed(data.pixels[rows]) if len(rows) else torch.zeros(0, 1)
    return [Photographs(data.labels[group], features[torch.searchsorted(rows, group)]) for group in groups]
