"""The tables of `mi-audit.toml`: every setting with its type, its default and one line on what it does."""

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from mi_audit.audit.settings_gate import BaselineTable, DecisionTable, Rules, WaiverTable
from mi_audit.audit.settings_kinds import AutomaticCount, Count, Numbers, Portion, Rate, Share, Table, Whole, Words

Open = Mapping[str, Mapping[str, object]]


class ModelTable(Table):
    """The classifier under audit, and what is known about it; what is left out is found out."""

    ref: str | None = Field(
        default=None,
        description="file, folder, timm:NAME, torchvision:NAME[@WEIGHTS], local-dir:PATH or hf-hub:NAME",
        examples=["dist/model.safetensors"],
    )
    arch: str | None = Field(
        default=None,
        description="architecture of bare weights: timm:NAME, torchvision:NAME, py:module:factory",
        examples=["timm:resnet18"],
    )
    num_classes: Count | None = Field(default=None, description="number of outputs", examples=[530])
    size: Count | None = Field(default=None, description="input height = width in pixels", examples=[64])
    channels: Count | None = Field(default=None, description="input channels: 1 or 3", examples=[3])
    mean: Numbers | None = Field(
        default=None, description="normalisation after scaling to [0, 1]: mean per channel", examples=[[0.5, 0.5, 0.5]]
    )
    std: Numbers | None = Field(
        default=None,
        description="normalisation after scaling to [0, 1]: deviation per channel",
        examples=[[0.5, 0.5, 0.5]],
    )
    labels: Path | None = Field(
        default=None, description="file with one class name per line, in output order", examples=["labels.txt"]
    )
    class_order: Literal["auto", "natural", "lexical"] = Field(
        default="auto", description="order of class folders: natural (timm), lexical (torchvision), auto (by accuracy)"
    )
    model_kwargs: Mapping[str, object] = Field(
        default_factory=dict, description="keyword arguments of the architecture's factory"
    )


class DataTable(Table):
    """The images; private ones only judge the attack, public ones are the attacker's knowledge."""

    private: str | None = Field(
        default=None,
        description="images of the training classes: folder, zip, .npz, digits:0-4 or a timm dataset",
        examples=["data/private"],
    )
    public: str | None = Field(
        default=None, description="images the attacker may use: same forms", examples=["data/public"]
    )
    size: Count | None = Field(
        default=None, description="side in pixels at which data are read and priors work: 32, 64 or 128", examples=[64]
    )
    convert_color: bool = Field(
        default=False, description="convert grey to RGB and back instead of refusing the mismatch"
    )


class RunTable(Table):
    """What is run, how thoroughly, and where."""

    attacks: Words = Field(
        default=("gmi", "ppa"),
        description="which attacks: names, all, tag:white-box|black-box|label-only, -NAME to leave out",
    )
    metrics: Words = Field(default=(), description="metric names; empty means the usual ones")
    classes: str = Field(default="all", description="classes to attack: all, 0-4, 0,3,7 or random:50")
    profile: Literal["quick", "standard", "thorough"] = Field(
        default="standard", description="effort: quick fits two cores, standard is as published"
    )
    seed: Whole = Field(default=0, description="first seed")
    seeds: Count = Field(default=1, description="number of seeds")
    evaluator: str = Field(default="auto", description="independent evaluator: a model reference; auto trains one")
    evaluator_arch: str | None = Field(
        default=None,
        description="architecture of the evaluator; of another family than the model",
        examples=["built-in:densenet121-small"],
    )
    evaluator_epochs: Count | None = Field(
        default=None, description="epochs for which the evaluator is trained", examples=[30]
    )
    verifier: str = Field(
        default="auto",
        description="judge of exposure: a model reference or built-in:NAME; auto trains one on public data",
    )
    verifier_epochs: Count | None = Field(
        default=None, description="epochs for which the verifier is trained; as many as the evaluator", examples=[25]
    )
    controls: Words = Field(
        default=("random", "permuted"),
        description="floors to compare with: random, permuted, untrained, counterfactual (see threat models)",
    )
    counterfactual: str = Field(
        default="auto",
        description="model trained without the attacked people, for that control: a model reference; auto trains one",
    )
    positive_control: bool | None = Field(
        default=None,
        description="attack a model that leaks on purpose, too: it must succeed; on in the profile thorough and with "
        "policy audit-v1",
        examples=[True],
    )
    declared_accuracy: Portion | None = Field(
        default=None,
        description="test accuracy that the owner declares, a share; the measured one must be within two points",
        examples=[0.86],
    )
    views: Count = Field(
        default=1,
        description="random views that white-box attacks average every gradient over, 20 to 50 against a defense; "
        "1 is none",
    )
    view_kind: Literal["paa", "taa", "erase"] = Field(
        default="taa", description="what those views are: paa adds noise, taa crops and turns, erase fills squares"
    )
    early_stop: bool = Field(
        default=False,
        description="latents leave a white-box search when their loss has ceased to fall; faster, and may find less",
    )
    halving: bool = Field(
        default=False, description="rank candidates in rounds that drop the worse half before they saw all views"
    )
    prior_profile: Literal["quick", "standard"] | None = Field(
        default=None, description="profile of the priors when it differs from the run's", examples=["quick"]
    )
    device: str = Field(default="auto", description="where to compute: auto, cpu, cuda, cuda:1 or mps")
    devices: Count = Field(
        default=1, description="processes that share the jobs, one per device; results do not depend on it"
    )
    precision: Literal["32", "bf16", "auto"] = Field(
        default="auto",
        description="bf16 attacks in bfloat16, too, where that changes little; auto trains in it, where it is fast",
    )
    batch_size: AutomaticCount = Field(
        default="auto",
        description="largest number of images decoded at once, or auto: by device and free memory; results do not "
        "depend on it beyond rounding",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="compile the networks that gradients go through; auto: where it was measured to pay"
    )
    deterministic: bool = Field(
        default=False, description="on accelerators, refuse operations that may give other results next time"
    )
    chunk: Count = Field(default=32, description="classes per job; a finished job is never run again")
    max_queries: Count | None = Field(
        default=None, description="most images a job may ask the target about", examples=[100000]
    )
    images: Literal["none", "local"] = Field(
        default="local", description="pictures: local writes them into the run folder, none leaves none behind"
    )
    out: Path | None = Field(
        default=None,
        description="run folder; without it one under runs/, named by the plan",
        examples=["runs/mine"],
    )
    cache: Path | None = Field(
        default=None, description="folder of trained evaluators and priors", examples=[".mi-audit-cache"]
    )


class DefendTable(Table):
    """How `mi-audit defend` retrains."""

    method: str = Field(default="tldmi", description="name of the defense, or several: tldmi+bido")
    freeze: str | None = Field(
        default=None,
        description="what stays public: 80%, params:80%, stage:3, module:NAME, index:26, linear-probe, auto:2, none",
        examples=["80%"],
    )
    pretrained: str = Field(
        default="auto",
        description="weights both models start from: a model reference; auto trains on labelled public data",
    )
    epochs: Count | None = Field(default=None, description="training epochs", examples=[30])
    lr: Rate | None = Field(default=None, description="learning rate", examples=[0.01])
    batch_size: Count | None = Field(default=None, description="training batch size", examples=[64])
    augment: Literal["auto", "none", "shift", "faces"] = Field(
        default="auto",
        description="random changes of training images; shift does not mirror; auto: faces in colour, else shift",
    )
    save: Path | None = Field(
        default=None, description="copy the defended weights here", examples=["defended.safetensors"]
    )
    settings: Mapping[str, object] = Field(default_factory=dict, description="hyper-parameters, by defense")
    sweep: str | None = Field(
        default=None,
        description="repeat with every value of one setting and compare: freeze=0%,40%,80% or bido.lambda_x=0.01,0.05; "
        "a name alone takes its usual values",
        examples=["freeze=0%,40%,60%,80%,90%"],
    )
    tolerance: Share = Field(
        default=2.0, description="points of test accuracy that the value recommended by a sweep may cost"
    )


class Settings(Table):
    """Everything that can be set; the tables of `mi-audit.toml` or of `[tool.mi-audit]` in pyproject.toml."""

    version: Literal[1] = Field(default=1, description="version of this file's format")
    model: ModelTable = ModelTable()
    data: DataTable = DataTable()
    run: RunTable = RunTable()
    attacks: Open = Field(
        default_factory=dict, description="[attacks.NAME]: settings of one attack; see `mi-audit info NAME`"
    )
    priors: Open = Field(default_factory=dict, description="[priors.NAME]: settings of one prior")
    defend: DefendTable = DefendTable()
    gate: Rules = Field(
        default=(),
        description="condition to fail on, such as 'attack_acc1 > 0.10'; replaces the rules of mi-audit.toml",
    )
    baseline: BaselineTable = BaselineTable()
    decision: DecisionTable = DecisionTable()
    waivers: tuple[WaiverTable, ...] = Field(
        default=(), description="failing rules that somebody answers for; only ever read from a file"
    )


FLAGS = {
    ("model", "ref"): "MODEL",
    ("model", "size"): "--input-size",
    ("run", "cache"): "--cache-dir",
    ("defend", "batch_size"): "--train-batch-size",
    ("baseline", "file"): "--baseline",
    ("decision", "tau"): "--threshold",
    ("gate",): "--fail-on",
}
FILE_ONLY = {("waivers",)}  # no option and no variable, so that an excuse is always written down
OPEN = {("attacks",), ("priors",), ("defend", "settings"), ("model", "model_kwargs")}


def flag_of(key: tuple[str, ...]) -> str:
    """How `key` is spelt on the command line; settings without an option of their own go by `--set`."""
    if any(key[: len(start)] == start for start in OPEN):
        return f"--set {'.'.join(key)}"
    return FLAGS.get(key, "--" + key[-1].replace("_", "-"))


def variable_of(key: tuple[str, ...]) -> str:
    """The environment variable of `key`: the name of its option."""
    return "MI_AUDIT_" + FLAGS.get(key, key[-1]).strip("-").replace("-", "_").upper()


def leaves() -> dict[tuple[str, ...], object]:
    """Every setting that has a fixed name, with its default."""
    found: dict[tuple[str, ...], object] = {}
    for table, value in Settings():
        if isinstance(value, Table):
            found |= {(table, name): default for name, default in value}
        elif table != "version":
            found[(table,)] = value
    return {key: default for key, default in found.items() if key not in OPEN | FILE_ONLY}


def describe(key: tuple[str, ...]) -> str:
    """What the setting `key` does, in one line."""
    info = _field(key)
    return str(info.description) if info is not None else ""


def example(key: tuple[str, ...]) -> object:
    """A value that could be written for `key`."""
    info = _field(key)
    return info.examples[0] if info is not None and info.examples else None


def kind_of(key: tuple[str, ...]) -> Any:  # noqa: ANN401
    """What a value of `key` is: int, float, bool, str, Path, tuple, or a Literal."""
    info = _field(key)
    kind: Any = info.annotation if info is not None else str
    if get_origin(kind) is UnionType or type(None) in get_args(kind):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return tuple if get_origin(kind) is tuple else kind


def _field(key: tuple[str, ...]) -> FieldInfo | None:
    owner: type[BaseModel] = Settings
    for name in key[:-1]:
        kind = owner.model_fields[name].annotation if name in owner.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return None
        owner = kind
    return owner.model_fields.get(key[-1])
