"""Everything an audit stands on before the first attack: device, data, evaluator, priors, run folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mi_audit.audit.clock import Clock
from mi_audit.audit.devices import on_device
from mi_audit.audit.executor import InProcess, executor_for
from mi_audit.audit.jobs import Executor
from mi_audit.audit.operations import carried_out
from mi_audit.audit.plan import ModelPlan, Plan
from mi_audit.audit.progress import ProgressSink
from mi_audit.audit.settings import plan_to_json
from mi_audit.core.dataset import Dataset, Splits
from mi_audit.core.errors import ConfigError, DataError
from mi_audit.core.report import DataFacts
from mi_audit.store.cache import Cache
from mi_audit.store.datasets import load_dataset, load_splits
from mi_audit.store.files import canonical_json, digest
from mi_audit.store.overlap import overlap
from mi_audit.store.runs import RunFolder
from mi_audit.store.targets import LoadedModel, load_model, new_model

ARCHITECTURES = ("built-in:", "timm:", "torchvision:")  # `defend` takes their names and trains the weights itself
ELSEWHERE = (
    "command",
    "fresh",
    "device",
    "devices",
    "batch_size",
    "cache",
    "decision",
    "waivers",
    "rules",
    "baseline",
    "max_regression",
)  # of a plan, what no result depends on
ONLY_WHEN_ON = ("early_stop", "halving")  # named when they are on, so that folders from before they existed are found
SMALLEST, LARGEST = 32, 128  # sides in pixels that the shipped priors are built for


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What all jobs of a run share.

    Attributes:
        splits: Private data; models are fitted on `train`, chosen on `val`, reported on `test`.
        public: The attacker's images.
        size: Side in pixels at which data were read and priors work.
        overlap: What was found in both data sets.
        executor: Where the jobs are done.
    """

    plan: Plan
    device: str
    model: LoadedModel
    splits: Splits
    public: Dataset
    size: int
    overlap: str
    folder: RunFolder
    cache: Cache
    clock: Clock
    progress: ProgressSink
    warnings: list[str] = field(default_factory=list)
    executor: Executor = field(default_factory=InProcess)

    def warn(self, text: str) -> None:
        """Show `text` now and keep it for the report."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.progress.warn(text)

    def data_facts(self) -> tuple[DataFacts, DataFacts]:
        """Private and public data, for the report."""
        train, val, test = self.splits.train, self.splits.val, self.splits.test
        private = DataFacts(
            ref=self.plan.private or "",
            fingerprint=train.fingerprint,
            images=len(train) + len(val) + len(test),
            classes=len(train.classes),
            splits={"train": len(train), "val": len(val), "test": len(test)},
        )
        public = DataFacts(
            ref=self.plan.public or "",
            fingerprint=self.public.fingerprint,
            images=len(self.public),
            classes=len(self.public.classes),
            splits={},
        )
        return private, public


def whole(splits: Splits) -> Dataset:
    """All parts together, for what concerns the whole set."""
    parts = (splits.train, splits.val, splits.test)
    return replace(
        splits.train,
        pixels=torch.cat([part.pixels for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        files=tuple(file for part in parts for file in part.files),
    )


def choose_device(wanted: str) -> str:
    """The device that `wanted` names; `auto` takes an accelerator when there is one.

    Raises:
        ConfigError: The device does not exist here.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"expected a device that exists here, got {wanted!r}; use --device cpu or auto") from error
    return wanted


def choose_size(model_size: int, wanted: int | None) -> int:
    """Side in pixels for data and priors: what the user wants, else the model's, as a power of two from 32 to 128."""
    if wanted is None:
        return min(LARGEST, max(SMALLEST, 1 << (model_size - 1).bit_length()))
    if wanted not in (32, 64, 128):
        raise ConfigError(f"expected --size 32, 64 or 128, got {wanted}; the priors are built for these")
    return wanted


def load_planned_model(plan: ModelPlan, device: str) -> LoadedModel:
    """The classifier that the plan names."""
    settings = {name: getattr(plan, name) for name in ModelPlan.__dataclass_fields__ if name != "ref"}
    return load_model(plan.ref, **settings, device=device)


def planned_architecture(plan: Plan, data: Dataset) -> LoadedModel:
    """A fresh network of the architecture that `defend` was given in place of a model, for the classes of `data`."""
    model = plan.model
    return new_model(
        model.ref,
        num_classes=model.num_classes or len(data.classes),
        channels=model.channels or data.channels,
        size=model.size or data.size,
        mean=model.mean or (0.5,),
        std=model.std or (0.5,),
        seed=plan.seed,
    )


def run_folder_path(plan: Plan, kind: str) -> Path:
    """Where the run is kept; without --out the name depends on the plan alone, so re-typing a command resumes it."""
    if plan.out is not None:
        return plan.out
    settings = {
        name: value
        for name, value in plan_to_json(plan).items()
        if name not in ELSEWHERE and (value or name not in ONLY_WHEN_ON)
    }
    stem = Path(plan.model.ref.split(":")[-1]).stem or "model"
    return Path("runs") / f"{kind}-{stem}-{digest(kind, settings)[:8]}"


@contextmanager
def open_scene(plan: Plan, kind: str, progress: ProgressSink, *, dry: bool = False) -> Iterator[Scene]:
    """Load model and data, create and lock the run folder. Time spent is written even when the run is cut short.

    Args:
        plan: What will run.
        kind: `attack` or `defend`.
        progress: Who watches.
        dry: Work in a temporary folder and leave nothing behind.
    """
    if plan.private is None:
        raise DataError(
            "expected images of the training classes, got none; give --private FOLDER to judge the attack with"
        )
    if plan.public is None:
        raise DataError("expected public images for the attacker's prior, got none; give --public FOLDER")
    device = choose_device(plan.device)
    if dry:
        with carried_out(plan, device), TemporaryDirectory() as nowhere, RunFolder(Path(nowhere)) as folder:
            yield _load(plan, kind, device, folder, Clock(), progress)
        return
    path = run_folder_path(plan, kind)
    with carried_out(plan, device), executor_for(device, plan.devices) as executor, RunFolder(path) as folder:
        if plan.fresh:
            folder.forget_jobs()
        # not fresh any more: what this run finishes from here on is kept when it is resumed
        folder.write_plan({"kind": kind, "plan": plan_to_json(replace(plan, fresh=False))})
        folder.point_latest()
        clock = Clock()
        try:
            with on_device(device):
                with clock.stage("load"):
                    scene = _load(plan, kind, device, folder, clock, progress)
                yield replace(scene, executor=executor)
        finally:
            clock.write(folder, progress)


def _load(plan: Plan, kind: str, device: str, folder: RunFolder, clock: Clock, progress: ProgressSink) -> Scene:
    progress.stage("Loading the model and the data")
    assert plan.private is not None and plan.public is not None
    cache = Cache(plan.cache)
    trained = None
    if kind == "defend" and plan.model.ref.startswith(ARCHITECTURES):
        size, channels = choose_size(plan.model.size or 64, plan.size), plan.model.channels
    else:
        trained = load_planned_model(plan.model, device)
        size, channels = choose_size(trained.classifier.size, plan.size), trained.classifier.channels
    splits = load_splits(plan.private, size, channels, convert_color=plan.convert_color, cache=cache)
    channels = splits.train.channels
    public = load_dataset(plan.public, size, channels, convert_color=plan.convert_color, cache=cache)
    model = trained or planned_architecture(plan, splits.train)
    private = whole(splits)
    progress.note(
        f"private: {len(private)} images of {len(private.classes)} classes; public: {len(public)} images; {size} px"
    )
    return Scene(plan, device, model, splits, public, size, overlap(private, public), folder, cache, clock, progress)


def as_settings(method: object) -> dict[str, object]:
    """The fields of a frozen method as plain JSON values, for hashes and reports."""
    return json.loads(canonical_json(asdict(method)))  # type: ignore[call-overload]
