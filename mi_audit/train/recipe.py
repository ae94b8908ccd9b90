"""How to train a classifier."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.nn.precision import Precision
from mi_audit.train.augment import Augmentation


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train a classifier.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step; a last batch of one image is dropped, for batch norms.
        lr: Learning rate, the peak of the schedule.
        optimiser: `sgd` with Nesterov momentum 0.9, or `adam`; either sees only parameters that require grad.
        weight_decay: Of the optimiser.
        schedule: `one-cycle` (a quarter up, then down to nothing, both as cosines), `constant`, or `milestones`
            (a tenth from 75 % on, a hundredth from 90 % on).
        augment: `none`, `shift` (never mirrors) or `faces` (mirrors).
        precision: `auto` is mixed bfloat16 where the hardware has it; the loss is always in single precision.
        clip: Largest norm of the gradient; None does not clip.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.05
    optimiser: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = 5e-4
    schedule: Literal["one-cycle", "constant", "milestones"] = "one-cycle"
    augment: Augmentation = "none"
    precision: Precision = "auto"
    clip: float | None = None

    def rate(self, progress: float) -> float:
        """The learning rate once `progress` of the training, from 0 to 1, is done."""
        match self.schedule:
            case "constant":
                return self.lr
            case "milestones":
                return self.lr * (1.0 if progress < 0.75 else 0.1 if progress < 0.9 else 0.01)
            case "one-cycle":
                rising = progress < 0.25
                low, share = (0.04, 1 - progress / 0.25) if rising else (0.0, (progress - 0.25) / 0.75)
                return self.lr * (low + (1 - low) * (1 + math.cos(math.pi * share)) / 2)


def optimiser_of(recipe: Recipe, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of the trainable weights; one launch for all of them where they are on an accelerator.

    On processors fused updates round otherwise, and trainings there would not come out as before.

    Raises:
        ConfigError: There are none.
    """
    if not weights:
        raise ConfigError("expected at least one trainable parameter, got none; freeze less of the network")
    lr, decay, fused = recipe.lr, recipe.weight_decay, weights[0].is_cuda
    if recipe.optimiser == "adam":
        return torch.optim.Adam(weights, lr, weight_decay=decay, fused=fused)
    return torch.optim.SGD(weights, lr, momentum=0.9, weight_decay=decay, nesterov=True, fused=fused)


def stated_recipe(stated: Mapping[str, object]) -> Recipe:
    """The recipe that a manifest states in values of JSON, every one of them checked: anybody can write a manifest.

    Raises:
        ConfigError: A value is of another type or out of range.
    """
    try:
        found = TypeAdapter(Recipe).validate_json(json.dumps(dict(stated)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"expected a valid {'.'.join(map(str, first['loc']))} in the recipe of the manifest, "
            f"got {first['input']!r:.80}: {first['msg']}; correct it"
        ) from error
    require_finite(found)
    above = (found.epochs, found.batch_size, found.lr, 1 if found.clip is None else found.clip)
    if min(above) <= 0 or found.weight_decay < 0:
        raise ConfigError(
            "expected epochs, batch_size, lr and clip above 0 and weight_decay >= 0 in the recipe of the manifest, "
            f"got {found}; correct it"
        )
    return found
