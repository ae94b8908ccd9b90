"""What an audit returns: plain frozen data, no tensors, so that a saved result can be judged and shown without torch.

Every number is a Quantity: value, unit, count, and an interval or the reason why there is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mi_audit.core.quantity import ClassValue as ClassValue
from mi_audit.core.quantity import Interval as Interval
from mi_audit.core.quantity import Measurement as Measurement
from mi_audit.core.quantity import Quantity as Quantity
from mi_audit.core.verdict import AttackOutcome as AttackOutcome
from mi_audit.core.verdict import Exposure as Exposure
from mi_audit.core.verdict import Outcome as Outcome
from mi_audit.core.verdict import RuleResult as RuleResult
from mi_audit.core.verdict import ValidityFlag as ValidityFlag
from mi_audit.core.verdict import Verdict as Verdict
from mi_audit.core.verdict import VerifierFacts as VerifierFacts
from mi_audit.core.verdict import Waiver as Waiver

SCHEMA_VERSION = "1.2.0"  # additive changes raise the second figure, others the first
POSITIVE = "control:positive"  # how the name of an attack on a model that leaks on purpose begins


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A network that took part: a target or the evaluator.

    Attributes:
        ref: As the user wrote it, or `trained by mi-audit`.
        arch: Architecture, in the grammar of `--arch`.
        sha256: Hash of the weights.
        size, channels, num_classes: Input height = width in pixels, input channels, outputs.
        mean, std: Normalisation after scaling to [0, 1].
        class_order: How outputs map to the classes of the data: `as given`, `natural`, `lexical`.
        origins: Where each of these facts came from.
        accuracy: Top-1 on the test split of the private data.
        defense: Name and facts of the defense it was trained with; empty when none is known.
        seed: Training seed, when the tool trained it.
        accuracy_per_class: Accuracy and number of test images of each class, for paired comparisons.
    """

    ref: str
    arch: str
    sha256: str
    size: int
    channels: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_order: str
    origins: Mapping[str, str]
    accuracy: Quantity
    defense: Mapping[str, object]
    seed: int | None = None
    accuracy_per_class: tuple[ClassValue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """A data set: where it came from and what was in it."""

    ref: str
    fingerprint: str
    images: int
    classes: int
    splits: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorFacts:
    """A prior that was used.

    Attributes:
        name: Recipe.
        sha256: Hash of the weights.
        settings: Objective, steps, size, published or light.
        samples: Picture of random samples, relative to the run folder; None when pictures are off.
    """

    name: str
    sha256: str
    settings: Mapping[str, object]
    samples: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveFacts:
    """The mean identity loss along one stage of an attack, averaged over its jobs."""

    stage: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionFacts:
    """What the networks of one stage of an attack computed in, over its jobs, where bfloat16 was asked for.

    Attributes:
        stage: As in the curves; `pool` is the scoring of random latents.
        searches: How often both arithmetics were compared, and one was chosen.
        mixed: How often it was bfloat16, but for the last tenth of the steps; otherwise it was single precision.
        cosine: Least and largest median cosine between what both gave at the first step; None when there is none.
        reasons: Why it was not bfloat16.
    """

    stage: str
    searches: int
    mixed: int
    cosine: tuple[float, float] | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """How far the latents of one stage of an attack went when they may stop early.

    Attributes:
        stage: Name of the search.
        asked: Steps of the whole search.
        rows: Latents.
        stopped: Share of them that stopped early.
        mean, median: Steps taken.
        note: Why none of them may; empty when they may.
    """

    stage: str
    asked: int
    rows: int
    stopped: float
    mean: float
    median: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The attacker's surest reconstruction of a class and the private image nearest to it.

    Attributes:
        label: Class attacked.
        seed: Seed of the run it came from.
        file, nearest: Paths relative to the run folder.
        accepted: The target assigns it to the class.
        hit: The evaluator assigns it to the class.
    """

    label: int
    seed: int
    file: str
    nearest: str | None
    accepted: bool
    hit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackResult:
    """One attack, or one control, over all classes and seeds.

    Attributes:
        name, role: Name of the attack or control, such as `control:random-prior`.
        access: What the attacker saw.
        prior, paper, settings: Recipe of the prior, citation, hyper-parameters as run.
        measurements: Among them `target_acceptance`: the share the target itself assigns to the class.
        queries, work: Images the target was asked about, by access; images passed through each network.
        steps: How far searches went, stage by stage, when latents may stop early; else empty.
        flags: Reasons to distrust the numbers, such as an attack that did not converge.
        failed: Jobs that failed, with the error.
        over_control: The attack minus each of its controls, paired by class and seed; the protocol names the control.
        precision: What its networks computed in; empty when all was in single precision as asked.
        note: What to know about how it was made, in sentences, such as what the model of a control was trained on.
    """

    name: str
    role: Literal["attack", "control"]
    access: str
    prior: str
    paper: str
    settings: Mapping[str, object]
    seeds: tuple[int, ...]
    measurements: tuple[Measurement, ...]
    queries: Mapping[str, int]
    work: Mapping[str, int]
    curves: tuple[CurveFacts, ...] = ()
    flags: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    over_control: tuple[Measurement, ...] = ()
    precision: tuple[PrecisionFacts, ...] = ()
    note: str = ""
    steps: tuple[StepFacts, ...] = ()

    def measurement(self, name: str) -> Measurement | None:
        """The measurement called `name`, or None."""
        return next((m for m in self.measurements if m.name == name), None)

    @property
    def floor(self) -> bool:
        """Whether it shows what is found without a leak: true of controls, but not of the positive one, which leaks."""
        return self.role == "control" and not self.name.startswith(POSITIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """Everything one audit found. Holds no clock time: the same audit gives the same bytes.

    Attributes:
        id: Hash of everything that determines the result.
        tool: Name and version of the program, of Python and of the libraries that matter.
        command: A command line that reproduces it.
        targets: The model under audit; one per training seed when the tool trained it.
        classes, attacked: Class names in label order, and the labels of the attacked ones.
        overlap: What was found in the public data that is also in the private data.
        limits: What this result cannot tell, in sentences.
        validity: Checks of whether low numbers would mean anything.
        verifier: The judge of exposure; None when there was none.
        planned: Labels of the classes that were to be attacked, when a sequential gate stopped earlier; else empty.
    """

    schema_version: str = SCHEMA_VERSION
    kind: Literal["audit"] = "audit"
    id: str
    tool: Mapping[str, str]
    device: str
    command: str
    profile: str
    targets: tuple[ModelFacts, ...]
    evaluator: ModelFacts
    private: DataFacts
    public: DataFacts
    overlap: str
    priors: tuple[PriorFacts, ...]
    classes: tuple[str, ...]
    attacked: tuple[int, ...]
    attacks: tuple[AttackResult, ...]
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()
    validity: tuple[ValidityFlag, ...] = ()
    verifier: VerifierFacts | None = None
    planned: tuple[int, ...] = ()

    @property
    def without_controls(self) -> tuple[AttackResult, ...]:
        """The attacks alone."""
        return tuple(attack for attack in self.attacks if attack.role == "attack")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A measurement before and after a defense.

    Attributes:
        attack, name: Of the attack and the measurement; `utility` for the accuracy of the model itself.
        before, after: As measured on the undefended twin and on the defended model.
        difference: After minus before, paired by class and seed.
        meaning: `less leakage`, `more leakage`, `better` or `worse` utility, `higher` or `lower` of what is neither,
            `no significant change`, or `not comparable`.
        p_value: Of the exact McNemar test, for identities that are exposed or not; None for other measurements.
    """

    attack: str
    name: str
    before: Quantity
    after: Quantity
    difference: Quantity
    meaning: str
    p_value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A defended model beside its undefended twin, or any two audits beside each other.

    Attributes:
        defense: Method, its settings, the resolved cut, the training recipe; empty when two audits were compared.
        model: File of the defended weights relative to the run folder, when the tool trained them.
        summary: One sentence that says what changed.
    """

    schema_version: str = SCHEMA_VERSION
    kind: Literal["comparison"] = "comparison"
    id: str
    command: str
    defense: Mapping[str, object]
    model: str | None
    before: AuditReport
    after: AuditReport
    changes: tuple[Change, ...]
    summary: str
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
