"""The control every attack is compared with: images that the target had no part in."""

from dataclasses import dataclass

import torch

from mi_audit.core.prior import Prior
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.types import Labels

NAME = "control:random-prior"
USUAL_PRIOR = "gmi-gan"  # the control of any other prior carries that prior's name


@dataclass(frozen=True, kw_only=True)
class RandomPriorSamples:
    """Random samples of the prior, handed out to the classes blindly.

    What the evaluator recognises in them is the floor of every attack with this prior: prior plus judge, no target.

    Attributes:
        per_class: Images per class.
    """

    per_class: int = 5

    @torch.no_grad()
    def run(self, prior: Prior, classes: Labels, run: Run) -> Reconstructions:
        """`per_class` images for each of `classes`, ordered by class."""
        labels = classes.repeat_interleave(self.per_class)
        restarts = torch.arange(self.per_class, device=classes.device).repeat(len(classes))
        latents = prior.z.draw(run.streams(labels, restarts).normal("control", prior.z.width))
        images = run.map(prior.z.decode, latents)
        run.work["generator_forward"] += len(labels)
        return Reconstructions(images, labels, torch.zeros(len(labels), device=classes.device))
