"""A classifier that leaks on purpose: it knows each class by one stored picture and by nothing else."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.core.types import Images, Labels, Logits

COARSEST = 4  # side in pixels of the smallest copy of a picture
NEAR = 0.1  # of the mean squared distance between templates: where the similarity starts to level off
SURE = 0.95  # probability of a class at its own template, if the others were at the mean distance


class NearestTemplate(nn.Module):
    """`logit_k = s (log(1 + D / h) - log(1 + d_k / h))`: largest where the picture equals the template of class k.

    `d_k` is the squared distance to template k in a pyramid of blurred copies, `D` its mean between templates,
    `h = D / 10`. The logarithm makes a Student kernel of it (as t-SNE has): it draws from afar, and it is greatest at
    the template. With `-d_k` itself it would not be, since the softmax cancels what the squares share and leaves a
    linear classifier, whose surest pictures lie beyond all templates. `s` makes a template 95 % sure of itself.

    Args:
        templates: A picture of every class in label order, as the network is fed.

    Shapes:
        templates: classes x channels x side x side, at least two classes that do not all look alike.
    """

    templates: Float[Tensor, "k d"]

    def __init__(self, templates: Images) -> None:
        super().__init__()
        known = pyramid(templates)
        classes = len(known)
        apart = float(squared_distances(known, known).sum() / (classes * (classes - 1)))
        reach = math.log1p(1 / NEAR)
        scale = math.log(SURE / (1 - SURE) * (classes - 1)) / reach
        self.width = NEAR * apart
        self.register_buffer("templates", known)
        self.head = nn.Linear(classes, classes)
        with torch.no_grad():
            self.head.weight.copy_(scale * torch.eye(classes))
            self.head.bias.fill_(scale * reach)

    def forward(self, images: Images) -> Logits:
        """Logits, differentiable in `images`."""
        with torch.autocast(images.device.type, enabled=False):  # differences of large sums need all digits
            nearness = -(squared_distances(pyramid(images.float()), self.templates) / self.width).log1p()
            return self.head(nearness)


def pyramid(images: Images) -> Float[Tensor, "b d"]:
    """Copies of every image at 4, 8, ... pixels, up to half its side, flattened; every size weighs the same.

    The squared distance of two rows is the mean over the sizes of their mean squared difference.
    """
    sides = [COARSEST]
    while 4 * sides[-1] <= images.shape[-1]:
        sides.append(2 * sides[-1])
    copies = [F.adaptive_avg_pool2d(images, side).flatten(1) for side in sides]
    return torch.cat([copy / math.sqrt(copy.shape[1] * len(sides)) for copy in copies], dim=1)


def squared_distances(rows: Float[Tensor, "b d"], others: Float[Tensor, "k d"]) -> Float[Tensor, "b k"]:
    """Between every two, by one matrix product; a rounding error below zero is zero."""
    squares = rows.square().sum(dim=1, keepdim=True) + others.square().sum(dim=1)
    return (squares - 2 * rows @ others.T).clamp_min(0)


def medoids(rows: Float[Tensor, "n d"], labels: Labels, classes: int) -> Int[Tensor, " k"]:
    """For every class the row nearest to the mean of its rows, the first of equals; every class must have one."""
    sums = rows.new_zeros(classes, rows.shape[1]).index_add_(0, labels, rows)
    means = sums / labels.bincount(minlength=classes)[:, None]
    off = (rows - means[labels]).square().sum(dim=1)
    order = off.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    return order[torch.searchsorted(labels[order], torch.arange(classes))]
