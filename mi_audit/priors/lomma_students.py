"""LOMMA's students: classifiers distilled from the target's soft answers to public images, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mi_audit.core.dataset import Dataset
from mi_audit.core.errors import ConfigError, DataError, TargetError
from mi_audit.core.finite import require_finite
from mi_audit.core.paper import Paper
from mi_audit.core.prior import Progress, SurrogateRecipe, Surrogates
from mi_audit.core.target import WhiteBoxTarget
from mi_audit.core.types import Images, Labels, Logits, Scalar
from mi_audit.nn.classifier import Classifier, hastened
from mi_audit.store.architectures import build, complete_name
from mi_audit.store.references import published
from mi_audit.train import checkpoint as checkpoints
from mi_audit.train.classifier import fit
from mi_audit.train.recipe import Recipe
from mi_audit.train.seeding import seeded, stream

PUBLISHED = ("timm:efficientnet_b0", "timm:efficientnet_b1", "timm:efficientnet_b2")
LIGHT = ("built-in:cnn",) * 3  # they differ in their start and in the order of the images
FEATURES = 5000  # public images behind the feature statistics
FEWEST = 4  # public images: two to learn from, one held out, and none to spare
BATCH = 256  # images the target looks at once, without gradients


@dataclass(frozen=True, kw_only=True)
class LommaStudents(SurrogateRecipe):
    """Train several classifiers to give the target's probabilities on public images (model augmentation, Sec. 4.2).

    The target is asked once about every image, in eval mode; the answers serve all students and all epochs. The same
    pass gives the mean and spread of the target's features that LOMMA's regulariser needs.

    Attributes:
        profile: `standard` distils three EfficientNets as published, `quick` three small networks on two cores.
        networks: Architectures, one student each, such as `timm:efficientnet_b0`; None takes the profile's.
        pretrained: Start from the weights published for the architectures, downloaded unless they are at hand.
        images: Public images that the target is asked about; None is all of them.
        held_out: Share of those that no student learns from, for the agreement that is reported.
        epochs: Passes over the images, for each student.
        batch_size: Images per step.
        lr: Learning rate of SGD; None takes 0.01 all along, or for `quick` one cycle up to 0.05.
        weight_decay: Of SGD.
        temperature: Divides the logits of both sides (tau).

    Raises:
        ConfigError: A number is out of range, or an architecture is unknown.
    """

    paper: ClassVar = Paper(
        title="Re-thinking Model Inversion Attacks Against Deep Neural Networks",
        authors="Nguyen et al.",
        venue="CVPR 2023",
        url="https://arxiv.org/abs/2304.01669",
    )
    deviations: ClassVar = (
        "One in ten public images is held out, to report how often students and target agree; the published students "
        "learn from all of them (`held_out`).",
        "The target is asked once about every image, in eval mode, not again in every epoch: the answers are the same.",
        "The students start from random weights unless `pretrained` is set, and learn with Nesterov's momentum.",
        "`quick` distils small networks in one cycle of the learning rate up to 0.05; published is 0.01 all along.",
    )
    smoke: ClassVar = {
        "profile": "quick", "networks": ("built-in:cnn", "built-in:cnn"), "images": 16, "epochs": 1, "batch_size": 4,
    }  # fmt: skip

    profile: Literal["quick", "standard"] = "standard"
    networks: tuple[str, ...] | None = None
    pretrained: bool = False
    images: int | None = None
    held_out: float = 0.1
    epochs: int = 20
    batch_size: int = 64
    lr: float | None = None
    weight_decay: float = 1e-4
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_finite(self)
        if self.epochs < 1 or self.batch_size < 2 or (self.images is not None and self.images < FEWEST):
            raise ConfigError(
                f"expected epochs >= 1, batch_size >= 2 and images >= {FEWEST}, got {self.epochs}, {self.batch_size}, "
                f"{self.images}; correct the settings of lomma-students"
            )
        if not 0 < self.held_out < 1 or min(self.temperature, self.lr or 1.0) <= 0 or self.weight_decay < 0:
            raise ConfigError(
                f"expected 0 < held_out < 1, lr and temperature > 0, weight_decay >= 0, got {self.held_out}, "
                f"{self.lr}, {self.temperature}, {self.weight_decay}; correct the settings of lomma-students"
            )
        if not self._architectures():
            raise ConfigError("expected at least one student, got none; name some in networks")
        try:
            for name in self._architectures():
                complete_name(name, "networks")
        except TargetError as error:
            raise ConfigError(f"expected known networks of lomma-students, got this: {error}") from error

    def fit(
        self,
        public: Dataset,
        target: WhiteBoxTarget | None,
        seed: int,
        device: str,
        on_step: Progress,
        checkpoint: Path | None = None,
    ) -> dict[str, Tensor]:
        if target is None:
            raise ConfigError("expected a target to distil, got none; lomma-students are fitted by `mi-audit attack`")
        if len(public) < FEWEST:
            raise DataError(f"expected at least {FEWEST} public images, got {len(public)} in {public.name}; add more")
        asked, learn = self._counts(len(public))
        rows = torch.randperm(len(public), generator=stream(seed, "images"))[:asked]
        run = f"{self} seed {seed} on {len(public)} images {public.fingerprint}"
        answers = _ask(target, public.select(rows), learn, device, run, _beside(checkpoint, "answers"))
        # The label of an image is its row among the answers, so that the trainer can stay as it is.
        data = replace(public.select(rows[:learn]), labels=torch.arange(learn))
        held = public.select(rows[learn:])
        weights = {"features.mean": answers.mean, "features.std": answers.std}
        agreement = []
        for number, arch in enumerate(self._architectures()):
            student = self._fitted(arch, number, data, answers.logits, seed, device, on_step, run, checkpoint)
            agreement.append(_agreement(student, held, answers.logits[learn:], device))
            weights |= {f"student{number}.{name}": value.cpu() for name, value in student.net.state_dict().items()}
        _clear(checkpoint, len(self._architectures()))
        counts = {"classes": target.num_classes, "queries": asked, "held_out": len(held)}
        weights |= {f"found.{name}": torch.tensor(count) for name, count in counts.items()}
        return weights | {"found.agreement": torch.tensor(agreement, dtype=torch.float64)}

    def restore(self, weights: Mapping[str, Tensor], size: int, channels: int, device: str) -> Surrogates:
        students = []
        for number, arch in enumerate(self._architectures()):
            student = self._untrained(arch, int(weights["found.classes"]), size, channels)
            own = f"student{number}."
            student.net.load_state_dict({k.removeprefix(own): v for k, v in weights.items() if k.startswith(own)})
            students.append(hastened(student.to(device)))
        return Surrogates(tuple(students), *(weights[f"features.{name}"].to(device) for name in ("mean", "std")))

    def describe(self, size: int, channels: int) -> dict[str, object]:
        quick = self.profile == "quick"
        return {
            "profile": self.profile,
            "recipe": "light, not published" if quick else "published, with Nesterov momentum",
            "students": list(self._architectures()),
            "start": "published weights" if self.pretrained else "random weights",
            "objective": f"KL divergence from the target's probabilities at temperature {self.temperature:g}",
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self._recipe().lr,
            "size": size,
            "channels": channels,
            "paper": str(self.paper),
        }

    def found(self, weights: Mapping[str, Tensor]) -> dict[str, object]:
        """Agreement with the target's predictions on held-out public images, and the images it was asked about."""
        return {
            "agreement": [round(share, 4) for share in weights["found.agreement"].tolist()],
            "agreement_images": int(weights["found.held_out"]),
            "target_queries": int(weights["found.queries"]),
        }

    def planned_steps(self, images: int, size: int, channels: int) -> int:
        del size, channels
        _, learn = self._counts(images)
        return len(self._architectures()) * self.epochs * -(-learn // self.batch_size)

    def shortened(self, steps: int) -> "LommaStudents":
        each = -(-steps // len(self._architectures()))
        images = max(FEWEST, round(each * self.batch_size / (1 - self.held_out)))
        return replace(self, epochs=1, images=images, pretrained=False)

    def _architectures(self) -> tuple[str, ...]:
        return self.networks if self.networks is not None else LIGHT if self.profile == "quick" else PUBLISHED

    def _counts(self, images: int) -> tuple[int, int]:
        """Images that the target is asked about, and how many of them the students learn from."""
        asked = min(images, self.images or images)
        return asked, asked - max(1, round(self.held_out * asked))

    def _recipe(self) -> Recipe:
        quick = self.profile == "quick"
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr or (0.05 if quick else 0.01),
            weight_decay=self.weight_decay,
            schedule="one-cycle" if quick else "constant",
            precision="auto" if quick else "32",
        )

    def _untrained(self, arch: str, classes: int, size: int, channels: int) -> Classifier:
        """The architecture as a student: pixels in [0, 1] go in as they are, as published."""
        channels = 3 if self.pretrained else channels  # published weights look at colours
        net = build(arch, num_classes=classes, channels=channels, size=size, kwargs={})
        return Classifier(net, size=size, channels=channels, mean=(0.0,), std=(1.0,))

    def _start(self, arch: str, classes: int, size: int, channels: int) -> Classifier:
        student = self._untrained(arch, classes, size, channels)
        if self.pretrained:
            own, theirs = student.net.state_dict(), published(arch)[0].state_dict()
            fitting = {name: value for name, value in theirs.items() if own[name].shape == value.shape}
            student.net.load_state_dict(own | fitting)  # all but the head, which is for other classes
        return student

    def _fitted(
        self,
        arch: str,
        number: int,
        data: Dataset,
        answers: Logits,
        seed: int,
        device: str,
        on_step: Progress,
        run: str,
        checkpoint: Path | None,
    ) -> Classifier:
        """Student `number`, trained now or by an earlier, interrupted call."""
        place, of = _beside(checkpoint, f"student{number}"), len(self._architectures())
        with seeded("cpu", seed, "student", number):
            student = self._start(arch, answers.shape[1], data.size, data.channels)
        done = checkpoints.load(place, run)
        if done is not None:
            student.load_state_dict(done["student"])
            return student.to(device).eval()
        soft = answers.to(device)

        def distil(model: nn.Module, images: Images, rows: Labels) -> Scalar:
            return distillation(model(images), soft[rows], self.temperature)

        fit(
            student, data, data.select(torch.arange(0)), self._recipe(), seed=of * seed + number, device=device,
            loss=distil, on_step=lambda label, *counts: on_step(f"student {number + 1}/{of}, {label}", *counts),
            checkpoint=_beside(checkpoint, f"training{number}"),
        )  # fmt: skip
        checkpoints.save(place, run, {"student": student.state_dict()})
        return student


def distillation(student: Logits, target: Logits, temperature: float = 1.0) -> Scalar:
    """`KL(softmax(target / tau) || softmax(student / tau))`: summed over classes, averaged over images."""
    ours, theirs = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, target))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class _Answers(NamedTuple):
    """What the target said about public images, and the statistics of its features over those to learn from."""

    logits: Logits
    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]


@torch.no_grad()
def _ask(target: WhiteBoxTarget, public: Dataset, learn: int, device: str, run: str, place: Path | None) -> _Answers:
    """One pass over `public`; an interrupted call that got this far does not ask again."""
    kept = checkpoints.load(place, run)
    if kept is not None:
        return _Answers(kept["logits"], kept["mean"], kept["std"])
    logits, features = [], []
    for start in range(0, len(public), BATCH):
        seen = target.logits_and_features(public.images(slice(start, start + BATCH), device))
        logits.append(seen[0].float().cpu())
        if start < min(learn, FEATURES):
            features.append(seen[1].float().cpu())
    counted = torch.cat(features)[: min(learn, FEATURES)]
    answers = _Answers(torch.cat(logits), counted.mean(dim=0), counted.std(dim=0))
    checkpoints.save(place, run, answers._asdict())
    return answers


@torch.no_grad()
def _agreement(student: nn.Module, held: Dataset, answers: Logits, device: str) -> float:
    """Share of the held-out images on which student and target predict the same class."""
    parts = [student(held.images(slice(at, at + BATCH), device)).argmax(1).cpu() for at in range(0, len(held), BATCH)]
    return float((torch.cat(parts) == answers.argmax(dim=1)).float().mean())


def _beside(checkpoint: Path | None, what: str) -> Path | None:
    return None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}.{what}.checkpoint")


def _clear(checkpoint: Path | None, students: int) -> None:
    for what in ("answers", *(f"student{number}" for number in range(students))):
        checkpoints.clear(_beside(checkpoint, what))
