"""What a gradient attack shows the target on its way, so that not only the end of a search can be looked at."""

import torch
from torch import nn
from torch.nn import functional as F

from mi_audit.core.target import Normalisation, TorchTarget, WhiteBoxTarget
from mi_audit.core.types import Features, Images, Labels, Logits, Pixels, Scores
from mi_audit.store.images import quantise


class Watched(WhiteBoxTarget):
    """Answers like `target` and keeps a few of the batches that it is asked about with a gradient, evenly over time.

    Handed to an attack on one class, all that it keeps was optimised towards that class. Views, crops and shifts are
    kept as the target saw them. What an attack asks a copy of the network is not seen.

    Args:
        target: Who answers.
        moments: Least number of batches to keep, when there are as many; never more than twice that.
        size: Side in pixels that what is kept is brought to.
    """

    def __init__(self, target: TorchTarget, moments: int, size: int) -> None:
        self.num_classes, self.ledger = target.num_classes, target.ledger
        self._target, self._moments, self._size = target, moments, size
        self._kept: list[Pixels] = []
        self._calls, self._stride = 0, 1

    @property
    def pixels(self) -> list[Pixels]:
        """At most `moments` batches, in the order in which they were seen, on the CPU."""
        places = torch.linspace(0, len(self._kept) - 1, min(self._moments, len(self._kept))).round().long()
        return [self._kept[place] for place in places.tolist()]

    def labels(self, images: Images) -> Labels:
        return self._target.labels(images)

    def scores(self, images: Images) -> Scores:
        return self._target.scores(images)

    def logits(self, images: Images) -> Logits:
        self._see(images)
        return self._target.logits(images)

    def features(self, images: Images) -> Features:
        self._see(images)
        return self._target.features(images)

    def network(self) -> nn.Module:
        return self._target.network()

    def logits_and_features(self, images: Images) -> tuple[Logits, Features]:
        self._see(images)
        return self._target.logits_and_features(images)

    def logits_and_normalisations(self, images: Images) -> tuple[Logits, tuple[Normalisation, ...]]:
        self._see(images)
        return self._target.logits_and_normalisations(images)

    @torch.no_grad()
    def _see(self, images: Images) -> None:
        """Keep every `stride`-th batch; when there are too many, every second one of them and twice the stride."""
        if not images.requires_grad:
            return
        if self._calls % self._stride == 0:
            if images.shape[-2:] != (self._size, self._size):
                images = F.interpolate(images, (self._size, self._size), mode="bilinear", antialias=True)
            self._kept.append(quantise(images).cpu())
            if len(self._kept) > 2 * self._moments:
                self._kept, self._stride = self._kept[::2], 2 * self._stride
        self._calls += 1
