"""The cases of the benchmark: an attack of the package, the plain loop beside it, and the worlds they meet in."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mi_audit.attacks.gmi import GMI
from mi_audit.attacks.if_gmi import IFGMI
from mi_audit.attacks.kedmi import KEDMI
from mi_audit.attacks.lomma import LOMMA
from mi_audit.attacks.plg_mi import PLGMI
from mi_audit.attacks.ppa import PPA
from mi_audit.audit.batching import default_batch
from mi_audit.core.attack import Attack
from mi_audit.core.prior import AssistedPrior, Prior
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import TorchTarget
from mi_audit.nn.gan import packed
from mi_audit.nn.stylegan2 import Generator
from mi_audit.priors.gmi_gan import GMIGan
from mi_audit.priors.kedmi_gan import KEDMIGan
from mi_audit.priors.lomma_students import PUBLISHED, LommaStudents
from mi_audit.priors.plg_cgan import PLGCGan
from mi_audit.priors.stylegan2 import StyleGAN2
from mi_audit.store.targets import LoadedModel
from tests.benchmarks import reference, reference_styles
from tests.benchmarks.reference import Found, Networks
from tests.benchmarks.reference_stylegan2 import PerSampleGenerator
from tests.benchmarks.worlds import Built, World, own

Precision = Literal["32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of a case to run.

    Attributes:
        world: What is attacked.
        classes: That are attacked; more than the world has begin anew, for images enough in a batch.
        batch: Of the reference loop.
        settings: Of the attack; `steps` among them.
    """

    world: World
    classes: int
    batch: int
    settings: Mapping[str, Any]

    def steps(self, share: float) -> "Size":
        """The same with a share of the steps, at least two: in bfloat16 the last one is in single precision."""
        steps = self.settings["steps"]
        many = isinstance(steps, tuple)
        fewer = tuple(max(2, round(share * one)) for one in steps) if many else max(2, round(share * steps))
        return replace(self, settings={**self.settings, "steps": fewer})

    def distinct(self) -> "Size":
        """The same without classes that begin anew."""
        classes = min(self.classes, self.world.classes)
        return replace(self, classes=classes, batch=min(self.batch, classes))

    @property
    def single(self) -> dict[str, Any]:
        """Settings that leave one image per class."""
        return {name: 1 for name in ("restarts", "samples") if name in self.settings}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table.

    Attributes:
        title: What is run, in words.
        method: The attack of the package.
        loop: The plain loop.
        timed: What the clock is held to.
        judged: What the results are compared on.
        goals: Ratios to reach on a CPU in single precision, on a CPU in bfloat16, and on an H100.
        scaled: By how much to multiply the restarts to see whether the time per image depends on their number.
        whole: Every pass goes through all of the generator, so that operations can be counted.
    """

    title: str
    method: Callable[..., Attack[Any, Any]]
    loop: Callable[..., Found]
    timed: Size
    judged: Size
    goals: tuple[float, float, float]
    scaled: tuple[int, ...] = ()
    whole: bool = True


class Engine:
    """The attack of the package on copies of the networks of a world, run the way a job of an audit is run.

    Args:
        case: Which attack.
        built: The networks.
        device: Where.
        precision: What searches are asked to compute in, as by `--precision`.
    """

    def __init__(self, case: Case, built: Built, device: str, precision: Precision) -> None:
        self.case, self.device, self.precision = case, device, precision
        self.batch = default_batch(device, built.world.size)
        self.target = _target(built, device)
        self.prior = _prior(case, built, device)

    def run(self, size: Size, *, seed: int = 0, batch: int | None = None, run: Run | None = None) -> Reconstructions:
        attack = _attack(self.case, size)
        run = replace(run or Run(seed=seed, batch_size=batch or self.batch), precision=self.precision)
        return attack.run(self.target, self.prior, attacked(size, self.device), run)


class Reference:
    """The plain loop on copies of the same networks."""

    def __init__(self, case: Case, built: Built, device: str) -> None:
        self.case, self.device = case, device
        target = own(built.target, device)
        critic = built.k_plus_one if case.method is KEDMI else built.critic
        needs = case.method in (GMI, KEDMI, LOMMA)
        self.networks = Networks(
            target=target,
            head=target.head,
            generator=_reference_generator(built.generator, device),
            critic=own(critic, device) if critic is not None and needs else None,
            students=tuple(own(student, device) for student in built.students) if case.method is LOMMA else (),
            centre=built.feature_mean.to(device),
            classes=built.world.classes,
            width=built.width,
            batch=0,
        )

    def run(self, size: Size, *, seed: int = 0) -> Found:
        networks = replace(self.networks, batch=size.batch)
        return self.case.loop(networks, _attack(self.case, size), attacked(size, self.device), seed)


def attacked(size: Size, device: str) -> Tensor:
    """The classes in their order."""
    return torch.arange(size.classes, device=device) % size.world.classes


def _attack(case: Case, size: Size) -> Attack[Any, Any]:
    """The attack, whose gradients are divided by what the plain loop takes its mean over."""
    settings = dict(size.settings)
    if case.method in (GMI, LOMMA):
        settings["reference_batch"] = size.batch
    return case.method(**settings)


def _target(built: Built, device: str) -> TorchTarget:
    """As a job of an audit gets it."""
    loaded = LoadedModel(copy.deepcopy(built.target).to(device), "benchmark", built.world.target, "")
    return loaded.target(hasten=True)


def _prior(case: Case, built: Built, device: str) -> Prior:
    size, generator = built.world.size, built.generator
    if isinstance(generator, Generator):
        return StyleGAN2().restore(copy.deepcopy(generator.state_dict()), size, 3, device)
    if case.method is PLGMI:
        weights = packed(generator=generator) | {"reuse": torch.zeros(())}
        return PLGCGan().restore(weights, size, 3, device)
    if case.method is KEDMI:
        return KEDMIGan().restore(packed(generator=generator, critic=built.k_plus_one), size, 3, device)
    prior = GMIGan().restore(packed(generator=generator, critic=built.critic), size, 3, device)
    if case.method is not LOMMA:
        return prior
    weights = {"features.mean": built.feature_mean, "features.std": torch.ones_like(built.feature_mean)}
    for number, student in enumerate(built.students):
        weights |= {f"student{number}.{name}": value.clone() for name, value in student.net.state_dict().items()}
    weights["found.classes"] = torch.tensor(built.world.classes)
    recipe = LommaStudents(networks=built.world.students)
    return AssistedPrior(prior, recipe.restore(weights, size, 3, device))


def _reference_generator(generator: nn.Module, device: str) -> nn.Module:
    """Published weights of StyleGAN2 come frozen; those of the other generators do not."""
    if isinstance(generator, Generator):
        return PerSampleGenerator(own(generator, device).requires_grad_(False))
    return own(generator, device)


def iterations(size: Size) -> int:
    """Image-iterations of a run."""
    steps = size.settings["steps"]
    images = size.classes * size.settings.get("restarts", 1)
    return images * (sum(steps) if isinstance(steps, tuple) else steps)


SMALL = World(prior="gan", size=64, target="vgg16-bn-small", fed=64, classes=10, images=80, judged=False)
CONDITIONAL = replace(SMALL, prior="conditional", images=40)
STUDIED = replace(SMALL, students=PUBLISHED)
LITTLE = World(prior="gan", size=32, target="cnn", fed=32, classes=10, images=60, epochs=3)
LITTLE_CONDITIONAL = replace(LITTLE, prior="conditional")
LITTLE_STUDIED = replace(LITTLE, students=("built-in:cnn",) * 3)
STYLES = World(prior="style", size=256, target="resnet18", fed=224, classes=10, images=0)
LITTLE_STYLES = replace(STYLES, size=64, fed=64, width=2048, images=40)
ALONE = {"restarts": 1}
SELECTION = {"pool": 4, "restarts": 1, "keep": 1, "views": 2, "flips": False}
SEARCH = {"pool": 30, "restarts": 2, "keep": 2, "views": 4, "flips": False, "lr": 0.05}
STAGES = {"restarts": 1, "pool": 4, "flips": False}


def quick() -> dict[str, Case]:
    """The cases at the size of two cores and a few minutes: real networks are timed, results compared on small ones.

    Small ones end their searches in seconds, so that there are enough ends to compare. Where the generator is
    StyleGAN2, what is timed has random weights.
    """
    return {
        "gmi": Case(
            title="GMI, VGG16-BN at 64 px",
            method=GMI,
            loop=reference.gmi,
            timed=Size(world=SMALL, classes=20, batch=20, settings={"steps": 3, **ALONE}),
            judged=Size(world=LITTLE, classes=10, batch=10, settings={"steps": 80, "restarts": 2}),
            goals=(1.8, 3.4, 3.5),
            scaled=(1, 3),
        ),
        "kedmi": Case(
            title="KEDMI, VGG16-BN at 64 px",
            method=KEDMI,
            loop=reference.kedmi,
            timed=Size(world=SMALL, classes=20, batch=20, settings={"steps": 3, "samples": 1}),
            judged=Size(world=LITTLE, classes=10, batch=10, settings={"steps": 60, "samples": 4, "lr": 0.1}),
            goals=(1.8, 3.4, 3.5),
        ),
        "lomma": Case(
            title="LOMMA, VGG16-BN and three EfficientNets at 64 px",
            method=LOMMA,
            loop=reference.lomma,
            timed=Size(world=STUDIED, classes=20, batch=20, settings={"steps": 2, **ALONE}),
            judged=Size(world=LITTLE_STUDIED, classes=10, batch=10, settings={"steps": 50, "restarts": 2}),
            goals=(2.4, 2.6, 3.5),
        ),
        "plg-mi": Case(
            title="PLG-MI, VGG16-BN at 64 px, two views",
            method=PLGMI,
            loop=reference.plg_mi,
            timed=Size(world=CONDITIONAL, classes=20, batch=20, settings={"steps": 2, "flip": 0.0, **ALONE}),
            judged=Size(
                world=LITTLE_CONDITIONAL, classes=10, batch=10, settings={"steps": 30, "flip": 0.0, "restarts": 2}
            ),
            goals=(2.0, 4.0, 4.0),
        ),
        "ppa": Case(
            title="PPA, StyleGAN2 at 256 px, ResNet-18 at 224 px",
            method=PPA,
            loop=reference_styles.ppa,
            timed=Size(world=STYLES, classes=1, batch=3, settings={**SELECTION, "steps": 2, "restarts": 3, "keep": 1}),
            judged=Size(world=LITTLE_STYLES, classes=10, batch=4, settings={**SEARCH, "steps": 12}),
            goals=(2.5, 5.0, 8.0),
        ),
        "if-gmi": Case(
            title="IF-GMI, StyleGAN2 at 256 px, ResNet-18 at 224 px",
            method=IFGMI,
            loop=reference_styles.if_gmi,
            timed=Size(world=STYLES, classes=1, batch=3, settings={**STAGES, "steps": (2, 1), "restarts": 3}),
            judged=Size(
                world=LITTLE_STYLES, classes=10, batch=4,
                settings={**STAGES, "pool": 30, "restarts": 2, "steps": (8, 4), "lr": 0.05},
            ),
            goals=(2.5, 5.0, 8.0),
            whole=False,
        ),
    }  # fmt: skip


def full(device: str) -> dict[str, Case]:
    """The cases at batches of 60; on an accelerator also small batches, and what only fits there."""
    known = quick()
    many = {"gan": replace(SMALL, classes=60, images=60), "conditional": replace(CONDITIONAL, classes=60, images=40)}
    known["gmi"] = _larger(known["gmi"], many["gan"], {"steps": 20}, {"steps": 200, "restarts": 30}, 60, (1, 2, 4, 8))
    known["kedmi"] = _larger(known["kedmi"], many["gan"], {"steps": 20}, {"steps": 200, "samples": 30}, 60, ())
    studied = replace(many["gan"], students=PUBLISHED)
    known["lomma"] = _larger(known["lomma"], studied, {"steps": 6}, {"steps": 150, "restarts": 30}, 60, (1, 2, 4))
    known["plg-mi"] = _larger(
        known["plg-mi"], many["conditional"], {"steps": 6}, {"steps": 100, "restarts": 30}, 60, (1, 2, 4)
    )
    trained = replace(STYLES, images=30)
    ends = {"pool": 100, "restarts": 10}  # with ten classes and three seeds, 300 ends of searches
    for name, judged in (("ppa", {**ends, "keep": 10, "steps": 20}), ("if-gmi", {**ends, "steps": (12, 6)})):
        known[name] = _larger(known[name], trained, {}, judged, 10, (1, 2, 4))
    if device != "cpu":
        ten = {f"{name}-10": _small_batch(known[name]) for name in ("gmi", "kedmi")}
        largest = replace(STYLES, size=1024, width=32768)
        known |= {**ten, "ppa-1024": replace(known["ppa"], title="PPA, StyleGAN2 at 1024 px, ResNet-18 at 224 px",
            timed=replace(known["ppa"].timed, world=largest))}  # fmt: skip
    return known


def _larger(
    case: Case,
    world: World,
    timed: Mapping[str, Any],
    judged: Mapping[str, Any],
    classes: int,
    scaled: tuple[int, ...],
) -> Case:
    """The same case on more images and longer.

    StyleGAN2 keeps its batch, images of that size being large, and is compared on the larger world as well.
    """
    style = world.prior == "style"
    batch = case.timed.batch if style else classes
    larger = {"settings": {**case.timed.settings, **timed}, "world": world, "batch": batch}
    ends = {"settings": {**case.judged.settings, **judged}, "batch": batch}
    return replace(
        case,
        timed=replace(case.timed, **larger, **({} if style else {"classes": classes})),
        judged=replace(case.judged, **ends, **({"classes": classes, "world": world} if style else {})),
        scaled=scaled,
    )


def _small_batch(case: Case) -> Case:
    """The plain loop at ten images, as some publish it; the engine takes all at once."""
    return replace(
        case,
        title=case.title + ", plain loop in batches of 10",
        timed=replace(case.timed, batch=10),
        judged=replace(case.judged, batch=10),
        goals=(*case.goals[:2], 10.0),
    )
