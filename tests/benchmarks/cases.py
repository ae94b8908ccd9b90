"""The cases of the benchmark: an attack of the package, the plain loop beside it, and the worlds they meet in."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from mi_audit.attacks.gmi import GMI
from mi_audit.attacks.kedmi import KEDMI
from mi_audit.attacks.lomma import LOMMA
from mi_audit.attacks.plg_mi import PLGMI
from mi_audit.audit.runner import default_batch
from mi_audit.core.attack import Attack
from mi_audit.core.prior import AssistedPrior, Prior, Surrogates
from mi_audit.core.reconstruction import Reconstructions
from mi_audit.core.run import Run
from mi_audit.core.target import TorchTarget
from mi_audit.nn.gan import packed
from mi_audit.nn.stylegan2 import Generator
from mi_audit.priors.gmi_gan import GMIGan
from mi_audit.priors.kedmi_gan import KEDMIGan
from mi_audit.priors.plg_cgan import PLGCGan
from mi_audit.priors.stylegan2 import StyleGAN2
from tests.benchmarks import reference
from tests.benchmarks.reference import Found, Networks
from tests.benchmarks.worlds import Built, World, own

Precision = Literal["32", "bf16"]
EFFICIENT = ("torchvision:efficientnet_b0", "torchvision:efficientnet_b1", "torchvision:efficientnet_b2")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of a case to run.

    Attributes:
        world: What is attacked.
        classes: That are attacked.
        batch: Of the reference loop.
        settings: Of the attack; `steps` among them.
    """

    world: World
    classes: int
    batch: int
    settings: Mapping[str, Any]

    def steps(self, share: float) -> "Size":
        """The same with a share of the steps, at least one."""
        steps = self.settings["steps"]
        many = isinstance(steps, tuple)
        fewer = tuple(max(1, round(share * one)) for one in steps) if many else max(1, round(share * steps))
        return replace(self, settings={**self.settings, "steps": fewer})

    @property
    def fewest(self) -> dict[str, Any]:
        """Settings that leave one image per class."""
        return {name: 1 for name in ("restarts", "samples", "pool", "keep") if name in self.settings}


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
        precision: `bf16` runs under autocast, as `--precision bf16` does.
    """

    def __init__(self, case: Case, built: Built, device: str, precision: Precision) -> None:
        self.case, self.device, self.precision = case, device, precision
        self.batch = default_batch(device, built.world.size)
        target = copy.deepcopy(built.target).to(device)
        self.target = TorchTarget(target, built.world.classes, target.head)
        self.prior = _prior(case, built, device)

    def run(self, size: Size, *, seed: int = 0, batch: int | None = None, run: Run | None = None) -> Reconstructions:
        attack = _attack(self.case, size)
        run = run or Run(seed=seed, batch_size=batch or self.batch)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            return attack.run(self.target, self.prior, torch.arange(size.classes, device=self.device), run)


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
        classes = torch.arange(size.classes, device=self.device)
        return self.case.loop(networks, _attack(self.case, size), classes, seed)


def _attack(case: Case, size: Size) -> Attack[Any, Any]:
    """The attack, whose gradients are divided by what the plain loop takes its mean over."""
    settings = dict(size.settings)
    if case.method in (GMI, LOMMA):
        settings["reference_batch"] = size.batch
    return case.method(**settings)


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
    students = tuple(copy.deepcopy(one).to(device).eval().requires_grad_(False) for one in built.students)
    mean = built.feature_mean.to(device)
    return AssistedPrior(prior, Surrogates(students, mean, torch.ones_like(mean)))


def _reference_generator(generator: nn.Module, device: str) -> nn.Module:
    return own(generator, device)


def iterations(size: Size) -> int:
    """Image-iterations of a run."""
    steps = size.settings["steps"]
    images = size.classes * size.settings.get("restarts", 1)
    return images * (sum(steps) if isinstance(steps, tuple) else steps)


SMALL = World(prior="gan", size=64, target="vgg16-bn-small", fed=64, classes=10, images=80)


def full(device: str) -> dict[str, Case]:
    """The cases at the published sizes of networks and batches; on an accelerator also what only fits there."""
    del device
    return quick()


def quick() -> dict[str, Case]:
    """The cases at the size of two cores and a few minutes."""
    return {
        "gmi": Case(
            title="GMI, VGG16-BN at 64 px",
            method=GMI,
            loop=reference.gmi,
            timed=Size(world=SMALL, classes=10, batch=10, settings={"steps": 8, "restarts": 1}),
            judged=Size(world=SMALL, classes=10, batch=10, settings={"steps": 40, "restarts": 1}),
            goals=(1.8, 3.4, 3.5),
        ),
    }


