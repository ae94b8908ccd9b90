"""Realistic results built by hand, with pictures drawn on the fly: digits, never people."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mi_audit.core.report import (
    AttackOutcome,
    AttackResult,
    AuditReport,
    Change,
    ClassValue,
    Comparison,
    CurveFacts,
    DataFacts,
    Exposure,
    Interval,
    Measurement,
    ModelFacts,
    Picture,
    PriorFacts,
    Quantity,
    RuleResult,
    ValidityFlag,
    Verdict,
    VerifierFacts,
    Waiver,
)

SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc")  # seven segments of 0..4
BOXES = {"a": (4, 7, 8, 24), "b": (5, 16, 21, 24), "c": (15, 27, 21, 24), "d": (25, 28, 8, 24), "e": (15, 27, 8, 11)}
LIT = {**BOXES, "f": (5, 16, 8, 11), "g": (14, 17, 8, 24)}


def digit(label: int, noise: float, seed: int) -> np.ndarray:
    """A 32 x 32 picture of a digit, the noisier the less it leaks."""
    image = np.zeros((32, 32))
    for name in SEGMENTS[label % len(SEGMENTS)]:
        top, bottom, left, right = LIT[name]
        image[top:bottom, left:right] = 1
    blurred = sum(np.roll(image, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
    static = np.random.default_rng(seed).random((32, 32))
    return np.clip(255 * ((1 - noise) * blurred + noise * static), 0, 255).astype(np.uint8)


def share(value: float | None, low: float = 0.0, high: float = 1.0, *, count: int = 60) -> Quantity:
    bounds = None if value is None else Interval(low=low, high=high, method="bootstrap over classes and seeds")
    reason = "not measured in this run" if value is None else None
    return Quantity(value=value, unit="share", count=count, counted="images", interval=bounds, reason=reason)


def measured(name: str, value: float | None, low: float, high: float, **more: object) -> Measurement:
    facts = {"unit": "share", "leak_grows": True, "count": 60, "counted": "reconstructions"} | more
    bounds = None if value is None else Interval(low=low, high=high, method="bootstrap over classes and seeds")
    protocol = f"{name}/image/all/none@cnn-wide-5f3a9c01"
    return Measurement(name=name, protocol=protocol, value=value, interval=bounds, **facts)


def measurements(accuracy: float, accepted: float, spread: float = 0.11) -> tuple[Measurement, ...]:
    low, high = max(0.0, accuracy - spread), min(1.0, accuracy + spread)
    classes = [(label, seed, accuracy + 0.08 * (label - 2) + 0.02 * seed) for label in range(5) for seed in range(3)]
    per_class = tuple(ClassValue(label=c, seed=s, value=min(1.0, max(0.0, v)), count=4) for c, s, v in classes)
    near = tuple(ClassValue(label=c, seed=s, value=9 - 5 * v, count=4) for c, s, v in classes)
    top5 = min(1.0, accuracy + 0.3)
    distance = 9 - 5 * accuracy
    return (
        measured("attack_acc1", accuracy, low, high, per_class=per_class),
        measured("attack_acc5", top5, top5 - 0.1, min(1.0, top5 + 0.1)),
        measured(
            "knn_l2sq_min",
            distance,
            distance - 0.6,
            distance + 0.6,
            unit="feature distance",
            leak_grows=False,
            per_class=near,
        ),
        measured(
            "fid_evaluator",
            None,
            0,
            0,
            unit="squared feature distance",
            leak_grows=False,
            reason="fewer than 2 images per feature",
        ),
        measured("target_acceptance", accepted, accepted - 0.03, min(1.0, accepted + 0.02), leak_grows=None),
    )


def attack(name: str, accuracy: float, *, side: str = "", accepted: float = 0.98, **more: object) -> AttackResult:
    place = f"images/{side}{name}"
    pictures = tuple(
        Picture(
            label=c, seed=0, file=f"{place}/s0/{c}-0.png", nearest=f"images/nearest/{c}.png", accepted=True, hit=c != 1
        )
        for c in range(5)
    )
    rate, floor = (0.985, 0.3) if side == "after/" else (0.97, 0.05)
    curve = tuple(2.4 * rate**step + floor for step in range(0, 200, 5))
    facts = {
        "name": name, "role": "attack", "access": "white-box", "prior": "gmi_gan",
        "paper": "Struppek et al. Plug & Play Attacks. ICML 2022. https://arxiv.org/abs/2201.12179",
        "settings": {"steps": 70, "learning_rate": 0.005, "crops": (0.9, 1.0), "pool": 2000},
        "seeds": (0, 1, 2), "measurements": measurements(accuracy, accepted),
        "queries": {"white-box": 412_000}, "work": {"generator": 412_000, "target": 412_000},
        "curves": (CurveFacts(stage="optimise", steps=tuple(range(0, 200, 5)), losses=curve),), "pictures": pictures,
    }  # fmt: skip
    return AttackResult(**{**facts, **more})


def control() -> AttackResult:
    return attack(
        "control:random-prior", 0.12, accepted=0.2, role="control", access="none", paper="", settings={"samples": 4},
        measurements=measurements(0.12, 0.2, 0.05), queries={}, curves=(), pictures=(),
    )  # fmt: skip


def model(accuracy: float, **more: object) -> ModelFacts:
    facts = {
        "ref": "face.safetensors", "arch": "built-in:cnn", "sha256": "9d" * 32, "size": 32, "channels": 1,
        "num_classes": 5, "mean": (0.5,), "std": (0.5,), "class_order": "lexical",
        "origins": {"arch": "safetensors metadata", "class_order": "accuracy on private data"},
        "accuracy": share(accuracy, accuracy - 0.02, min(1.0, accuracy + 0.015), count=180), "defense": {}, "seed": 0,
    }  # fmt: skip
    return ModelFacts(**{**facts, **more})


def audit(
    *, side: str = "", gmi: float = 0.46, ppa: float = 0.68, accuracy: float = 0.985, **more: object
) -> AuditReport:
    settings = {"objective": "non-saturating", "steps": 1500, "published": False}
    prior = PriorFacts(name="gmi_gan", sha256="77" * 32, settings=settings, samples="images/prior-gmi_gan.png")
    judge = model(0.994, ref="trained by mi-audit", arch="built-in:cnn-wide", sha256="5f" * 32)
    data = DataFacts(
        ref="digits:0-4", fingerprint="ab" * 32, images=901, classes=5, splits={"train": 541, "val": 180, "test": 180}
    )
    facts = {
        "id": "c0ffee" * 10, "tool": {"mi-audit": "0.1.0", "python": "3.11.9", "torch": "2.15.0"}, "device": "cpu",
        "command": "mi-audit attack face.safetensors --private digits:0-4 --public digits:5-9", "profile": "quick",
        "targets": (model(accuracy),), "evaluator": judge,
        "private": data, "public": DataFacts(ref="digits:5-9", fingerprint="cd" * 32, images=896, classes=5, splits={}),
        "overlap": "no image found in both data sets",
        "priors": (prior,),
        "classes": ("zero", "one", "two", "three", "four"), "attacked": (0, 1, 2, 3, 4),
        "attacks": (attack("gmi", gmi, side=side), attack("ppa", ppa, side=side), control()),
        "limits": ("A low number is no proof of anonymity.", "Intervals describe classes and seeds only."),
        "papers": ("Zhang et al. The Secret Revealer. CVPR 2020. https://arxiv.org/abs/1911.07135",),
    }  # fmt: skip
    return AuditReport(**{**facts, **more})


def change(
    name: str,
    metric: str,
    values: tuple[float, float],
    spread: float,
    meaning: str,
    unit: str = "share",
    width: float = 0.11,
) -> Change:
    def quantity(value: float, width: float) -> Quantity:
        bounds = Interval(low=value - width, high=value + width, method="paired bootstrap over classes and seeds")
        return Quantity(value=value, unit=unit, count=60, counted="reconstructions", interval=bounds)

    before, after = values
    return Change(
        attack=name, name=metric, before=quantity(before, width), after=quantity(after, width),
        difference=quantity(after - before, spread), meaning=meaning,
    )  # fmt: skip


def comparison(**more: object) -> Comparison:
    defense = {
        "method": "tldmi", "kind": "information", "settings": {"freeze": "80%"},
        "resolved": {"units": 4, "frozen": 3, "frozen_units": ["conv1", "conv2", "conv3"], "parameter_share": 0.41},
        "recipe": {"epochs": 12, "lr": 0.05, "optimiser": "sgd"},
    }  # fmt: skip
    defended = (model(0.962, ref="trained by mi-audit", sha256="31" * 32, defense=defense),)
    facts = {
        "id": "beef" * 16, "command": "mi-audit defend face.safetensors --method tldmi --freeze 80% --seeds 3",
        "defense": defense, "model": "models/defended-s0.safetensors",
        "before": audit(side="before/"), "after": audit(side="after/", gmi=0.31, ppa=0.59, targets=defended),
        "changes": (
            change("gmi", "attack_acc1", (0.46, 0.31), 0.09, "less leakage"),
            change("gmi", "knn_l2sq_min", (6.7, 7.45), 0.4, "less leakage", "feature distance", 0.6),
            change("ppa", "attack_acc1", (0.68, 0.59), 0.12, "no significant change"),
            change("ppa", "knn_l2sq_min", (5.6, 6.05), 0.7, "no significant change", "feature distance", 0.6),
            change("utility", "accuracy", (0.985, 0.962), 0.013, "worse", width=0.014),
        ),
        "summary": "TL-DMI lowered GMI from 46% to 31%; PPA shows no significant change; the model lost 2.3 points.",
    }  # fmt: skip
    return Comparison(**{**facts, **more})


def failing() -> Verdict:
    rule = RuleResult(
        id="MI001", when="attack_acc1 > 0.10", outcome="FAIL",
        reason="gmi: attack_acc1 = 0.46 [0.35, 0.57], limit 0.1: the whole interval is above it",
    )  # fmt: skip
    return Verdict(outcome="FAIL", rules=(rule,))


def exposure(**more: object) -> Exposure:
    """Solved by hand nowhere: only to be shown."""
    facts = {
        "exposed": 3, "attacked": 300, "total": 530, "missing": 1, "value": 0.01, "lower": 0.0027, "upper": 0.0256,
        "adjusted": 0.0284, "sensitivity": 0.9, "control": share(0.0033, 0.0001, 0.02, count=300), "tau": 0.1,
        "alpha": 0.05, "method": "hypergeometric", "more": 40,
    }  # fmt: skip
    return Exposure(**{**facts, **more})


VALIDITY = (
    ValidityFlag(id="G2 ZERO_GRAD", passed=True, detail="the smallest gradient norm of 20 pilot images is 0.031"),
    ValidityFlag(
        id="G3 NOT_CONVERGED",
        passed=False,
        detail="the target accepts 71% of the reconstructions",
        clears="raise steps until the target accepts 90%, or run the pixel-space pilot",
    ),
    ValidityFlag(id="G4 BB_BEATS_WB", passed=None, detail="no black-box attack ran", clears="add brep to --attacks"),
)


def verifier() -> VerifierFacts:
    return VerifierFacts(
        ref="trained by mi-audit",
        arch="built-in:cnn-wide",
        sha256="e1" * 32,
        threshold=0.62,
        far=share(0.004, 0.0005, 0.0098, count=628),
        sensitivity=share(0.93, 0.87, 0.97, count=100),
        trained_on="digits:5-9, which the target did not see",
        weakness="small and trained on few identities",
    )


def decided(outcome: str = "PASS", **more: object) -> Verdict:
    """The verdict of policy audit-v1 and of two expressions, one of them on every attack by itself."""
    rules = (
        RuleResult(id="audit-v1", when="exposure > 0.1", outcome=outcome, reason="3 of 300 identities are exposed"),
        RuleResult(
            id="MI002", when="attack_acc1 > 0.5", outcome="FAIL", reason="ppa: 0.68 [0.57, 0.79], limit 0.5",
            attacks=(
                AttackOutcome(attack="gmi", outcome="INCONCLUSIVE", reason="0.46 [0.35, 0.57], limit 0.5"),
                AttackOutcome(attack="ppa", outcome="FAIL", reason="0.68 [0.57, 0.79], limit 0.5"),
            ),
        ),
    )  # fmt: skip
    return Verdict(**{"outcome": "FAIL", "rules": rules, "exposure": exposure(), **more})


def waiver(**more: object) -> Waiver:
    facts = {
        "id": "MI002", "model_sha256": "9d" * 32, "expires": "2027-01-31",
        "reason": "internal use only, says the owner", "applied": True, "status": "applied",
    }  # fmt: skip
    return Waiver(**{**facts, **more})


def trusted(**more: object) -> AuditReport:
    """An audit with everything that says how far its numbers carry."""
    seen = tuple(ClassValue(label=label, seed=0, value=float(label == 4), count=1) for label in range(5))
    exposed = measured("exposure", 0.2, 0.01, 0.6, counted="identities", count=5, per_class=seen)
    ours, ppa, floor = attack("gmi", 0.46), attack("ppa", 0.68), control()
    leak = measured("leakage", 0.2, 0.02, 0.38)
    leak = replace(leak, protocol="leakage/identity/sel1/target-conf@v-over-control:random-prior")
    attacks = (
        ours,
        replace(ppa, measurements=(exposed, *ppa.measurements), over_control=(leak,)),
        floor,
        replace(floor, name="control:permuted-labels:ppa"),
    )
    return audit(**{"attacks": attacks, "validity": VALIDITY, "verifier": verifier(), "verdict": decided(), **more})


def _save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def draw_pictures(folder: Path, sides: tuple[str, ...] = ("", "before/", "after/")) -> None:
    """Every picture that `audit` and `comparison` name."""
    _save(folder / "images/prior-gmi_gan.png", _sheet(lambda k: digit(k % 5, 0.55, 900 + k)))
    for label in range(5):
        _save(folder / f"images/nearest/{label}.png", digit(label, 0.02, label))
        for side in sides:
            for name in ("gmi", "ppa"):
                noise = {"": 0.3, "before/": 0.3, "after/": 0.55}[side] + (0.12 if name == "gmi" else 0)
                _save(folder / f"images/{side}{name}/s0/{label}-0.png", digit(label, noise, 10 * label + len(side)))


def _sheet(cell: Callable[[int], np.ndarray], rows: int = 2, columns: int = 10) -> np.ndarray:
    return np.vstack([np.hstack([cell(row * columns + column) for column in range(columns)]) for row in range(rows)])
