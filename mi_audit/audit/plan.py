"""What one command is going to do: frozen, complete, and free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

Profile = Literal["quick", "standard", "thorough"]
FREEZING = "tldmi"  # what --freeze adds to methods that do not freeze
COMBINATIONS: Mapping[str, tuple[str, ...]] = {"calor": ("loft", "ca")}  # defenses published under a name of their own


def parts_of(method: str) -> list[str]:
    """The defenses that `--method` names, in its order; `none` is no defense."""
    names = (name.strip() for name in method.split("+"))
    return [part for name in names for part in COMBINATIONS.get(name, (name,)) if part != "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """Which classifier, and what the user said about it; None means: find out.

    Attributes:
        ref: File, folder, `local-dir:`, `hf-hub:`, `timm:NAME`, `torchvision:NAME[@WEIGHTS]` or `built-in:NAME`.
        arch: `timm:NAME`, `torchvision:NAME`, `built-in:NAME` or `py:module:factory`.
        num_classes, channels, size: Outputs; input channels; input height = width in pixels.
        mean, std: Normalisation after scaling to [0, 1].
        labels: File with one class name per line, in output order.
        class_order: `auto` (by accuracy), `natural` (as timm sorts) or `lexical` (as torchvision sorts).
        model_kwargs: Passed to the architecture's factory.
        allow_pickle: Load formats that can run code, in a child process.
    """

    ref: str
    arch: str | None = None
    num_classes: int | None = None
    channels: int | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: Path | None = None
    class_order: Literal["auto", "natural", "lexical"] = "auto"
    model_kwargs: Mapping[str, object] = field(default_factory=dict)
    allow_pickle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackPlan:
    """One attack with the settings that differ from its profile's."""

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePlan:
    """A gate rule: `when` is the condition to fail on, such as `attack_acc1 > 0.10`."""

    id: str
    when: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionPlan:
    """How identity exposure is decided.

    Attributes:
        policy: `rules` judges by the gate's expressions alone, `audit-v1` by exposure as well.
        tau: Largest share of exposed identities that is tolerated.
        alpha: Error rate of each bound.
        sequential: Look at the identities in the order of a hash and stop when enough were seen.
    """

    policy: Literal["rules", "audit-v1"] = "rules"
    tau: float = 0.10
    alpha: float = 0.05
    sequential: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WaiverPlan:
    """A failing rule that somebody answers for.

    Attributes:
        id: The rule it excuses.
        model_sha256: The only weights it holds for.
        expires: Last day it holds.
        reason: Why, and who said so.
        source: The file it was read from; one in the folder of the model does not count.
    """

    id: str
    model_sha256: str
    expires: date
    reason: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefendPlan:
    """How to retrain.

    Attributes:
        method: Name of the defense, or several joined by `+`.
        freeze: Freeze grammar; None takes the method's own.
        pretrained: `auto` (train on labelled public data), or a model reference whose weights start both models.
        epochs, lr, batch_size: None takes the profile's recipe.
        augment: Random changes of the training images; `auto` is `faces` for colour pictures, `shift` for grey ones.
        save: Where to copy the defended weights; None leaves them in the run folder only.
        settings: Hyper-parameters, by defense.
        sweep: Setting and values to repeat the defense with, in the grammar of `audit.grids`; None runs it once.
        tolerance: Points of test accuracy that the value recommended by a sweep may cost.
    """

    method: str = "tldmi"
    freeze: str | None = None
    pretrained: str = "auto"
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    augment: Literal["auto", "none", "shift", "faces"] = "auto"
    save: Path | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    sweep: str | None = None
    tolerance: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a run depends on.

    Attributes:
        private, public: Data references; folders, zips, `.npz`, `digits:0-4`, or names timm knows.
        size: Side in pixels at which data are read and priors work; None takes the model's, up to 128.
        convert_color: Turn grey pictures into RGB and back instead of refusing the mismatch.
        attacks, metrics: What to run; metrics empty means all but the expensive and unusual.
        classes: `all`, `0-4`, `0,3,7` or `random:50`.
        profile: `quick` fits two cores, `standard` is the published setting, `thorough` adds the positive control.
        seed, seeds: First seed and number of them.
        evaluator, evaluator_arch, evaluator_epochs: The judge: `auto` trains one of another architecture.
        verifier: The judge of exposure: `auto` and `built-in:NAME` train one on public data, else a model reference.
        verifier_epochs: Of its training; None is as many as the evaluator's.
        controls: Floors that every attack is compared with: `random`, `permuted`, `untrained`, `counterfactual`.
        counterfactual: The target of the last: `auto` trains one, else a model reference.
        positive_control: Attack a model that leaks on purpose as well; None does so under the profile
            `thorough` and the policy `audit-v1`.
        declared_accuracy: Test accuracy of the model according to its owner, a share; None is not declared.
        early_stop: Latents leave a gradient search when their loss has ceased to fall.
        halving: Candidates are ranked in rounds that drop the worse ones.
        prior_profile: `quick` or `standard`; None follows `profile`.
        prior_settings: Settings of the priors, by recipe name.
        device, precision, batch_size: Where and how; `auto` chooses the batch size by device and free memory. Not part
            of any id.
        compile: Whether the networks that gradients go through are compiled; part of the ids of jobs when they are.
        deterministic: Refuse operations that may give other results next time; part of the ids of jobs when it is on.
        devices: Processes that do the jobs, one per device. Not part of any id.
        views, view_kind: Views that white-box attacks average every gradient over; 1 is none. `paa` adds noise, `taa`
            crops and turns, `erase` fills squares.
        chunk: Classes per job.
        max_queries: Budget of every job's ledger.
        images: `local` writes pictures into the run folder, `none` leaves no picture behind.
        out: Run folder; None makes one under `runs/` whose name depends on the plan only, so re-typing resumes.
        cache: Folder of trained evaluators and priors; None is the user's cache folder.
        fresh: Ignore finished jobs of an earlier run.
        rules, baseline, max_regression, decision, waivers: The gate.
        command: The command line, for the report.
    """

    model: ModelPlan
    private: str | None = None
    public: str | None = None
    size: int | None = None
    convert_color: bool = False
    attacks: tuple[AttackPlan, ...] = (AttackPlan(name="gmi"), AttackPlan(name="ppa"))
    metrics: tuple[str, ...] = ()
    classes: str = "all"
    profile: Profile = "standard"
    seed: int = 0
    seeds: int = 1
    evaluator: str = "auto"
    evaluator_arch: str | None = None
    evaluator_epochs: int | None = None
    verifier: str = "auto"
    verifier_epochs: int | None = None
    controls: tuple[str, ...] = ("random", "permuted")
    counterfactual: str = "auto"
    positive_control: bool | None = None
    declared_accuracy: float | None = None
    views: int = 1
    view_kind: Literal["paa", "taa", "erase"] = "taa"
    early_stop: bool = False
    halving: bool = False
    prior_profile: Literal["quick", "standard"] | None = None
    prior_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    device: str = "auto"
    devices: int = 1
    precision: Literal["32", "bf16", "auto"] = "auto"
    batch_size: int | Literal["auto"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    deterministic: bool = False
    chunk: int = 32
    max_queries: int | None = None
    images: Literal["none", "local"] = "local"
    out: Path | None = None
    cache: Path | None = None
    fresh: bool = False
    rules: tuple[RulePlan, ...] = ()
    baseline: Path | None = None
    max_regression: float | None = None
    decision: DecisionPlan = field(default_factory=DecisionPlan)
    waivers: tuple[WaiverPlan, ...] = ()
    defend: DefendPlan = field(default_factory=DefendPlan)
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FisherPlan:
    """A layer-wise profile of Fisher information.

    Attributes:
        plan: Model, data, and the attacks when reconstructions have to be made; its gate and judges are not used.
        run: Run folder whose reconstructions are taken; None attacks now.
        samples: Most private validation images, and most reconstructions.
        moments: Batches to keep of every search besides its end.
        people: Classes to attack when the plan says `all`, drawn at random.
    """

    plan: Plan
    run: str | None = None
    samples: int = 2000
    moments: int = 10
    people: int = 20
