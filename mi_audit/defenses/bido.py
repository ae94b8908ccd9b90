"""BiDO: make hidden layers depend less on the picture and more on the label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from mi_audit.core.defense import Defense, Slot, Step, Term
from mi_audit.core.errors import ConfigError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.types import Images
from mi_audit.nn.dependence import (
    Factors,
    Gram,
    centred,
    coco_fro,
    coco_spec,
    gaussian,
    hsic,
    permuted,
    ridge_smoothers,
    same_class,
)
from mi_audit.nn.stages import hidden_layers

MEASURES = {"hsic": hsic, "coco_fro": coco_fro, "coco_spec": coco_spec}


@dataclass(frozen=True, kw_only=True)
class BiDO(Defense):
    """Add `sum over layers j of lambda_x d(X, Z_j) - lambda_y d(Z_j, Y)` to the loss (Eq. 5).

    X are the pixels, Z_j the hidden layers, Y the labels, d a measure of dependence within the batch. Of every step the
    weighted sums are noted as `input` and `label`, beside `input_permuted`, which is `input` with the pictures of the
    hidden layers dealt out anew: what is left there is no dependence but the sheer rank of the features. `skipped`
    counts layers of the step without a usable matrix, of `layers`; they add nothing. The published weights are very
    sensitive: try a grid.

    Attributes:
        measure: `hsic` (normalised), `coco_fro` (what the published code calls COCO) or `coco_spec` (COCO as defined).
        lambda_x: Weight of the dependence between pixels and layers; more of it does not always mean more privacy.
        lambda_y: Weight of the dependence between layers and labels. Both defaults are for HSIC; with COCO, whose
            values are far smaller, the paper uses 1 and 50.
        sigma: Width of the Gaussian kernels, in units of the root of the dimension; 0 takes the median distance.
        eps: Ridge of HSIC per picture; a larger one, such as 1e-3, tells dependence better from rank.
        layers: `auto` (ends of the stages), or dotted names of modules, separated by commas.
        images_per_class: Pictures of a class in a batch; `none` draws batches at random, which leaves too few pairs of
            one class for the label term when classes are many.

    Raises:
        ConfigError: A setting is out of range, or both weights are 0: the published script's default, no defense.
    """

    paper: ClassVar = Paper(
        title="Bilateral Dependency Optimization: Defending Against Model-inversion Attacks",
        authors="Peng et al.",
        venue="KDD 2022",
        url="https://arxiv.org/abs/2206.05483",
    )
    smoke: ClassVar = {}
    kind: ClassVar = "information"
    adaptive: ClassVar = "average gradients over 20 to 50 random views of the image, which is published to undo it"
    slots: ClassVar = frozenset({Slot.TERM})
    excludes: ClassVar = {
        "dp-sgd": "its loss couples the pictures of a batch, so that no gradient belongs to one of them"
    }
    untested: ClassVar = {"atat": "both compute extra passes or matrices per step; expect the costs to add up"}
    deviations: ClassVar = (
        "The published script trains with both weights 0 unless edited, and always measures HSIC; here two weights of "
        "0 are an error, and the measure is a setting.",
        "Matrices are made in double precision on the device and solved with a growing ridge; the published code "
        "inverts them in single precision on the CPU, which is unstable.",
        "The published COCO takes a Frobenius norm (coco_fro); coco_spec takes the largest singular value instead, as "
        "COCO is defined.",
        "With sigma 0 the width is the median distance; the published code takes the median squared distance for it.",
        "The label kernel is linear only: for one-hot labels every kernel of a distance is a multiple of it, once "
        "centred.",
        "Balanced batches serve every picture once per epoch; the published sampler drops or repeats some.",
        "The term also acts in phases before and after the main one, as long as hidden layers learn there.",
    )

    measure: Literal["hsic", "coco_fro", "coco_spec"] = "hsic"
    lambda_x: float = 0.05
    lambda_y: float = 0.5
    sigma: float = 5.0
    eps: float = 1e-5
    layers: str = "auto"
    images_per_class: int | None = 4

    def __post_init__(self) -> None:
        require_finite(self)
        if min(self.lambda_x, self.lambda_y) < 0 or self.lambda_x + self.lambda_y == 0:
            raise ConfigError(
                f"expected weights >= 0 and one above 0, got lambda_x={self.lambda_x} and "
                f"lambda_y={self.lambda_y}; without weights there is no defense"
            )
        if self.sigma < 0 or self.eps <= 0:
            raise ConfigError(f"expected sigma >= 0 and eps > 0, got {self.sigma} and {self.eps}; correct them")
        if self.images_per_class is not None and self.images_per_class < 2:
            raise ConfigError(
                f"expected images_per_class of 2 or more, got {self.images_per_class}: with single pictures the label "
                "kernel is constant; raise it, or set bido.images_per_class=none for random batches"
            )
        if not self._names() and self.layers != "auto":
            raise ConfigError(f"expected layers=auto or names of modules, got {self.layers!r}; write layer3,layer4")

    def taps(self, model: nn.Module, example: Images) -> Sequence[str]:
        return hidden_layers(model, example, self._names())

    def term(self, step: Step) -> Term | None:
        hidden = [output for output in step.taps.values() if output.requires_grad]
        if not hidden or len(step.labels) < 2:
            return None
        device = "cpu" if step.logits.device.type == "mps" else step.logits.device  # MPS has no double precision
        views = [gaussian(view.flatten(1).to(device), self.sigma) for view in (step.images, *hidden)]
        factors, usable = self._factors(torch.stack([same_class(step.labels.to(device)), *views]))
        labels, pixels, layers = factors[0], factors[1], factors[2:]
        order = torch.randperm(len(step.labels), generator=step.moment.rng)
        dealt = permuted(layers.detach(), order.to(device, non_blocking=True))
        measure = MEASURES[self.measure]
        explained = self.lambda_x * measure(pixels, layers).sum()
        labelled = self.lambda_y * measure(layers, labels).sum()
        notes = {
            "input": explained,
            "label": labelled,
            "input_permuted": self.lambda_x * measure(pixels, dealt).sum(),
            "skipped": (~usable[2:]).sum(),
            "layers": explained.new_full((), len(hidden)),
        }
        return Term(
            (explained - labelled).to(step.logits),
            {name: value.detach().to(step.logits) for name, value in notes.items()},
        )

    def shortfall(self, notes: Mapping[str, float]) -> str:
        """More than half of the layers added nothing.

        That `input` is near `input_permuted` is no sign: features without dependence and features of full rank both
        bring it about.
        """
        skipped, layers = notes.get("skipped", 0.0), notes.get("layers", 0.0)
        if skipped <= layers / 2:
            return ""
        return (
            f"{skipped:.1f} of {layers:.0f} hidden layers had no usable matrix and added nothing (means over the "
            f"last epoch), so hardly anything is defended; raise bido.eps, which is {self.eps:g}, or lower the rate"
        )

    def _factors(self, grams: Gram) -> Factors:
        return ridge_smoothers(grams, self.eps) if self.measure == "hsic" else centred(grams)

    def _names(self) -> tuple[str, ...]:
        return () if self.layers == "auto" else tuple(name.strip() for name in self.layers.split(",") if name.strip())
