"""Triggers, one per class, and the discriminator that keeps them unseen: what Trap-MID trains beside a classifier."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.core.types import Images, Labels, Scalar
from mi_audit.nn.classifier import Classifier, find_head
from mi_audit.nn.modes import evaluating


class Trapdoors(nn.Module):
    """Its `state_dict` holds all that later steps depend on: triggers, discriminator, its optimiser, classes to deal.

    Args:
        network: Classifier that the discriminator copies, weights included.
        num_classes: Number of triggers.
        example: Images of the size of the training images, on the device of `network`.
        lr, momentum, weight_decay: Of the discriminator's stochastic gradient descent.
    """

    triggers: Float[Tensor, "k c h w"]

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        example: Images,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.discriminator = one_logit(network, example)
        self.register_buffer("triggers", torch.rand(num_classes, *example.shape[1:]).to(example.device))
        self.optimiser = torch.optim.SGD(
            self.discriminator.parameters(), lr, momentum=momentum, weight_decay=weight_decay
        )
        self.stack = torch.empty(0, dtype=torch.int64)  # stays on the CPU, where random numbers are drawn

    def deal(self, count: int, rng: torch.Generator) -> Labels:
        """`count` classes, on the CPU, from shuffled stacks of all of them: no class is two ahead of another."""
        classes = len(self.triggers)
        stacks = -(-max(0, count - len(self.stack)) // classes)
        fresh = torch.rand(stacks, classes, generator=rng).argsort(dim=1).flatten()
        self.stack = torch.cat([self.stack, fresh])
        dealt, self.stack = self.stack[:count], self.stack[count:].clone()
        return dealt

    def judge(self, real: Images, trapped: Images) -> Scalar:
        """Let the discriminator take one step towards telling `trapped` from `real`; its loss before the step."""
        self.discriminator.train()
        loss = (self.surprise(real, real=True) + self.surprise(trapped, real=False)) / 2
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.detach()

    def surprise(self, images: Images, *, real: bool) -> Scalar:
        """Binary cross-entropy of the discriminator when all `images` are, or are not, real; a mean."""
        logits = self.discriminator(images).float()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def move(self, classes: Labels, slope: Float[Tensor, "n c h w"], step: float) -> None:
        """Move the triggers of `classes`, which must differ, against the sign of their slope; they stay in [0, 1]."""
        self.triggers[classes] = (self.triggers[classes] - step * slope.sign()).clamp(0, 1)

    def get_extra_state(self) -> dict[str, Any]:
        """What is neither a parameter nor a buffer."""
        return {"optimiser": self.optimiser.state_dict(), "stack": self.stack}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go back to what `get_extra_state` gave."""
        self.optimiser.load_state_dict(dict(state["optimiser"]))
        self.stack = state["stack"].cpu()


def one_logit(network: nn.Module, example: Images) -> nn.Module:
    """A copy of `network` that trains as a whole and whose head, new, has one output.

    Raises:
        TargetError: No linear layer or convolution of the network makes its logits.
    """
    critic = copy.deepcopy(network).requires_grad_(True)
    with evaluating(critic), torch.no_grad():
        name, _ = find_head(critic, lambda: critic(example))
    critic.set_submodule(name, _single(critic.get_submodule(name)))
    for part in critic.modules():
        if isinstance(part, Classifier):
            part.order = None  # there are no classes to reorder
    return critic


def _single(head: nn.Module) -> nn.Module:
    weight = head.get_parameter("weight")
    if isinstance(head, nn.Conv2d):
        return nn.Conv2d(weight.shape[1], 1, head.kernel_size, head.stride, head.padding).to(weight)  # type: ignore[arg-type]
    return nn.Linear(weight.shape[1], 1).to(weight)
