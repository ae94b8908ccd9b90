"""Identity losses: how far the logits of each image are from naming its class."""

import math

import torch
from torch.nn import functional as F

from mi_audit.core.types import Labels, Logits, PerSample


def cross_entropy(logits: Logits, labels: Labels) -> PerSample:
    """`-log softmax(logits)[label]`, per image, in single precision."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def aimed(logits: Logits, labels: Labels, confidence: float) -> PerSample:
    """`|log softmax(logits)[label] - log confidence|`, per image, in single precision.

    For models that were tuned to be no surer than `confidence` of what they know (CA). It has the minimiser of
    `|p - confidence|`, and unlike that one a gradient where the class is unlikely.
    """
    return (cross_entropy(logits, labels) + math.log(confidence)).abs()


def max_margin(logits: Logits, labels: Labels) -> PerSample:
    """`largest other logit - logit[label]` (PLG-MI), per image, in single precision: negative once the class wins.

    Unlike that of cross-entropy its gradient never fades, and it has no lower bound.
    """
    logits, named = logits.float(), labels[:, None]
    others = logits.scatter(1, named, -torch.inf)
    return others.amax(dim=1) - logits.gather(1, named).squeeze(1)


def poincare(logits: Logits, labels: Labels, xi: float = 1e-4) -> PerSample:
    """Hyperbolic distance in the unit ball between the normalised logits and the class (PPA), in single precision.

    `arcosh(1 + delta)`, `delta = 2 |u - v|^2 / ((1 - |u|^2) (1 - |v|^2))`, where u are the logits over their L1 norm
    and v is `1 - xi` at the label and 0 elsewhere. Unlike that of cross-entropy its gradient does not vanish once the
    class is sure. `1 - |u|^2` is summed as `sum a (1 - a)`, `a = |u|`: the same number, since the a sum to 1, without
    cancellation.
    """
    logits = logits.float()
    u = logits / logits.abs().sum(dim=1, keepdim=True).clamp_min(1e-12)
    gap = u - (1 - xi) * F.one_hot(labels, logits.shape[1])
    inside = (u.abs() * (1 - u.abs())).sum(dim=1).clamp_min(1e-7)
    delta = 2 * gap.square().sum(dim=1) / (inside * (xi * (2 - xi)))
    return torch.log1p(delta + (delta * (delta + 2)).sqrt())
