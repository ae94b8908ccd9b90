"""Identity losses averaged over random views of every image, so that the gradient keeps what the views agree on.

An attack gets it from its `Run`, not from its own settings (AlignMI, NeurIPS 2025): the averaged image gradient is
pulled back through the generator once, and the target sees the views a few at a time, so that neither the passes
through the generator nor the memory grow with the number of views.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mi_audit.core.random import Streams
from mi_audit.core.run import Averaging, ViewKind
from mi_audit.core.types import Images, Labels, PerSample
from mi_audit.nn.erasing import Erasing
from mi_audit.nn.views import Chain, RandomCrop, Rotation, View

Loss = Callable[[Images, Labels, Streams], PerSample]


@dataclass(frozen=True, slots=True)
class Noise:
    """Add normal noise whose deviation is a share of the range of values of the image.

    Attributes:
        share: Deviation over the brightest minus the darkest value.
        name: Name of the random draw.
    """

    share: float
    name: str = "noise"

    def __call__(self, images: Images, streams: Streams, step: int | Labels) -> Images:
        values = images.detach()
        spread = values.amax(dim=(1, 2, 3), keepdim=True) - values.amin(dim=(1, 2, 3), keepdim=True)
        return images + self.share * spread * streams.normal(self.name, *images.shape[1:], step=step)


VIEWS: dict[ViewKind, View] = {
    # As published for KEDMI at 64 pixels; but the range is that of the image, which the batch has no part in.
    "paa": Noise(0.05, "averaging/noise"),
    # The same line; the mirror images of the 224-pixel line would be wrong for digits, letters and most medical images.
    "taa": Chain(
        (
            RandomCrop((0.8, 1.0), (0.9, 1.1), name="averaging/crop"),
            Rotation(5.0, share=1.0, name="averaging/rotation"),
        )
    ),
    "erase": Erasing(name="averaging/erasing"),  # as MIDRE is published
}


def averaged(
    loss: Loss, images: Images, labels: Labels, streams: Streams, step: int, averaging: Averaging, at_once: int
) -> PerSample:
    """The mean of `loss` over views of every image; its gradient is the mean of theirs.

    Args:
        loss: Per-image loss, given the images, their labels and their streams; every view has a stream of its own.
        images: What the views are taken of, as the generator made it.
        labels: One per image.
        streams: One per image.
        step: Number of the gradient step.
        averaging: Kind and number of the views.
        at_once: Views of all images to show in one pass; the result does not depend on it beyond rounding.
    """
    view, count = VIEWS[averaging.kind], averaging.count
    seen = images.detach().requires_grad_()
    total = torch.zeros(len(images), device=images.device)
    gradient = torch.zeros_like(seen, dtype=torch.float32)
    keys = streams.branches(count).keys.view(-1, count)
    for part in keys.split(at_once, dim=1):
        copies, own = part.shape[1], Streams(part.T.flatten())  # copies b
        losses = loss(view(seen.repeat(copies, 1, 1, 1), own, step), labels.repeat(copies), own)
        with torch.autocast(seen.device.type, enabled=False):  # as gradients outside of mixed precision are taken
            (slope,) = torch.autograd.grad(losses.sum(), seen)
        total, gradient = total + losses.detach().view(copies, -1).sum(dim=0), gradient + slope
    return (total + ((images - seen.detach()) * gradient).flatten(1).sum(dim=1)) / count
