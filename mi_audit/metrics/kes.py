"""Knowledge extraction score: how well a student that saw only the reconstructions classifies real private images."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import Diverged
from mi_audit.core.metric import Evidence, Metric
from mi_audit.core.report import ClassValue, Measurement
from mi_audit.nn.intervals import TOO_FEW, by_class, share_interval, tables
from mi_audit.store.targets import new_model
from mi_audit.train.classifier import fit
from mi_audit.train.recipe import Recipe

BATCH = 256
BUILDABLE = ("built-in:", "timm:", "torchvision:")


@dataclass(frozen=True, kw_only=True)
class KnowledgeExtraction(Metric):
    """The accuracy on held-out private images of a student trained on reconstructions with the classes they claim.

    No judge has a say in it; pictures that only look right to the target teach nothing (Struppek et al., ICLR 2024).
    One student is trained per attack seed, from fresh weights, without a validation set; chance is one divided by the
    number of attacked classes, and the floor is what the same student learns from the control. It costs one training
    per attack, control and seed, so it is measured only when it is named. The published student is a pre-trained
    ResNet-50 trained for 75 epochs: the protocol names the one used here, and values of different students cannot be
    compared.

    Attributes:
        epochs: Passes over the reconstructions; a quick default.
        batch_size: Reconstructions per step.
        lr: Peak learning rate of SGD.
        student: Architecture; `auto` is the evaluator's, or a small one when that cannot be built afresh.
    """

    epochs: int = 20
    batch_size: int = 32
    lr: float = 0.02
    student: str = "auto"

    names: ClassVar = ("kes",)
    unit: ClassVar = "share"
    summary: ClassVar = "accuracy on real private images of a student trained on the reconstructions (only when named)"
    default: ClassVar = False

    def measure(self, evidence: Evidence) -> tuple[Measurement, ...]:
        arch, held_out = self._arch(evidence), evidence.held_out
        if held_out is None:
            return (self._measurement(arch, reason="no held-out private images to examine the student on"),)
        labels, seeds, hits = [], [], []
        for seed in evidence.seeds.unique().tolist():
            try:
                hits.append(self._right(evidence, held_out, arch, seed))
            except Diverged as error:
                return (self._measurement(arch, reason=f"the student of seed {seed} diverged: {error}"),)
            labels.append(held_out.labels)
            seeds.append(torch.full_like(held_out.labels, seed))
        if not hits:
            return (self._measurement(arch, reason="no reconstruction to learn from"),)
        return (self._measurement(arch, torch.cat(hits), torch.cat(labels), torch.cat(seeds)),)

    def _right(self, evidence: Evidence, held_out: Dataset, arch: str, seed: int) -> Bool[Tensor, " b"]:
        """Which held-out images the student of one seed classifies rightly."""
        lesson = _lesson(evidence, seed, held_out.classes)
        model = new_model(
            arch, num_classes=len(held_out.classes), channels=lesson.channels, size=lesson.size,
            mean=(0.5,) * lesson.channels, std=(0.5,) * lesson.channels, seed=seed,
        )  # fmt: skip
        nobody = lesson.select(torch.zeros(0, dtype=torch.int64))
        recipe = self._recipe(lesson.channels)
        fit(model.classifier, lesson, nobody, recipe, seed=seed, device=evidence.device, on_step=_silent)
        return _answers(model.classifier.eval(), held_out, evidence.device) == held_out.labels

    def _recipe(self, channels: int) -> Recipe:
        augment: Literal["faces", "shift"] = "faces" if channels == 3 else "shift"
        return Recipe(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, augment=augment, precision="32")

    def _arch(self, evidence: Evidence) -> str:
        if self.student != "auto":
            return self.student
        if evidence.judge.arch.startswith(BUILDABLE):
            return evidence.judge.arch
        return "built-in:cnn" if evidence.pixels.shape[-1] <= 40 else "built-in:resnet18-small"

    def _measurement(
        self,
        arch: str,
        hits: Tensor | None = None,
        labels: Tensor | None = None,
        seeds: Tensor | None = None,
        reason: str | None = None,
    ) -> Measurement:
        value, interval = None, None
        rows: tuple[ClassValue, ...] = ()
        if hits is not None and labels is not None and seeds is not None:
            shares = hits.double().numpy()
            rows = by_class(shares, labels.numpy(), seeds.numpy())
            values, weights = tables(rows)
            value, interval = float(np.mean(shares)), share_interval(values, weights=weights)
            reason = None if interval else TOO_FEW
        return Measurement(
            name=self.names[0],
            protocol=f"kes/identity/all/none@{arch}#student-e{self.epochs}-b{self.batch_size}-lr{self.lr}-test",
            value=value,
            unit=self.unit,
            count=0 if hits is None else len(hits),
            counted="answers to held-out images",
            interval=interval,
            reason=reason,
            leak_grows=True,
            per_class=rows,
        )


def _lesson(evidence: Evidence, seed: int, classes: tuple[str, ...]) -> Dataset:
    """The reconstructions of one seed, ordered by class and content: what a student learns depends on the order."""
    rows = (evidence.seeds == seed).nonzero().squeeze(1)
    pixels, labels = evidence.pixels[rows], evidence.labels[rows]
    flat = pixels.flatten(1).double()
    content = flat @ torch.rand(flat.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.from_numpy(np.lexsort((content.numpy(), labels.numpy())))
    name = f"reconstructions of seed {seed}"
    return Dataset(name, pixels[order], labels[order], classes, name)


@torch.no_grad()
def _answers(model: nn.Module, data: Dataset, device: str) -> Tensor:
    parts = [model(data.images(slice(start, start + BATCH), device)) for start in range(0, len(data), BATCH)]
    return torch.cat(parts).argmax(dim=1).cpu()


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Metrics report no progress."""
