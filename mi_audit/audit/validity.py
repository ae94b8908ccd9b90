"""Whether a low number would mean anything: automatic checks of the live model and of what the attacks achieved.

Thresholds follow AutoAttack's flags (Croce & Hein, ICML 2020) and the checklist of Carlini et al. ("On evaluating
adversarial robustness", 2019), carried over to model inversion. What follows from a raised flag is the gate's business.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mi_audit.audit.adaptive import no_adaptive
from mi_audit.audit.runner import averaging_of
from mi_audit.audit.scene import Scene
from mi_audit.core.attack import Attack
from mi_audit.core.random import Streams
from mi_audit.core.report import AttackResult, ModelFacts
from mi_audit.core.run import LEAST_VIEWS, Averaging
from mi_audit.core.target import TorchTarget
from mi_audit.core.types import Images, Labels
from mi_audit.core.verdict import ValidityFlag, VerifierFacts
from mi_audit.nn.objectives import cross_entropy
from mi_audit.nn.verification import first_of_class
from mi_audit.store.images import quantise
from mi_audit.store.targets import LoadedModel
from mi_audit.train.seeding import seeded

PILOTS = 20  # images, and classes, that the live model is tried on
PASSES = 5
SAME_OUTPUT = 1e-4  # largest normalised difference between two passes of a deterministic model
SUM_TO_ONE = 1e-5
CONVERGED = 0.90  # share of its own reconstructions that the target must accept
PIXEL_STEPS, PIXEL_RATE = 100, 0.05
FELL = 0.10  # least share of the first loss by which an attack that works lowers it
SETTLED = 0.05  # largest share of that fall in the second half of a run that more steps would not help
TYPE1_GAP = 0.20
MANDATORY = "run a label-only attack and one on a surrogate of the model, too"


@dataclass(frozen=True, slots=True, eq=False)
class Pilots:
    """Private test images on which a model is tried."""

    images: Images
    labels: Labels


def check(
    scene: Scene,
    targets: Mapping[int, tuple[LoadedModel, ModelFacts]],
    attacked: Sequence[int],
    results: Sequence[AttackResult],
    builds: Mapping[str, Attack[Any, Any]],
    verifier: VerifierFacts | None,
) -> tuple[ValidityFlag, ...]:
    """The flags G0 to G6; of several models under audit the worst counts, and what is random in them is repeatable."""
    with seeded(scene.device, scene.plan.seed, "validity"):
        tried = pilots(scene, attacked)
        models = [model.target() for model, _ in {m.sha256: (m, f) for m, f in targets.values()}.values()]
        attacks = [one for one in results if one.role == "attack"]
        zero = _worst([zero_gradient(target, tried) for target in models])
        averaging = next((one for attack in builds.values() if (one := averaging_of(scene.plan, attack))), None)
        return (
            _worst([non_logit(target, tried) for target in models]),
            _worst([randomised(target, tried, averaging) for target in models]),
            zero,
            not_converged(attacks, _reachable(attacks, models, tried, zero.passed), _black_box_better(attacks)),
            black_box_better(attacks),
            type1_gap(attacks, verifier),
            no_adaptive(
                [facts.defense for _, facts in targets.values()],
                builds,
                averaging,
                [model.edits for model, _ in targets.values()],
            ),
        )


def pilots(scene: Scene, attacked: Sequence[int]) -> Pilots:
    """Up to twenty held-out images of attacked classes, spread over the classes; training images where none is left."""
    test, train = scene.splits.test, scene.splits.train
    data = test if bool(torch.isin(test.labels, torch.tensor(attacked)).any()) else train
    rows = torch.isin(data.labels, torch.tensor(attacked)).nonzero().squeeze(1)
    share = -(-PILOTS // len(attacked))
    rows = rows[first_of_class(data.labels[rows], torch.full((len(data.classes),), share))][:PILOTS]
    return Pilots(data.images(rows, scene.device), data.labels[rows].to(scene.device))


@torch.no_grad()
def non_logit(target: TorchTarget, tried: Pilots) -> ValidityFlag:
    """G0: the outputs are probabilities, whose gradients vanish where the model is sure."""
    outputs = target.logits(tried.images).float()
    off = float((outputs.sum(dim=1) - 1).abs().max())
    probabilities = off <= SUM_TO_ONE and bool((outputs >= 0).all())
    return ValidityFlag(
        id="G0 NONLOGIT",
        passed=not probabilities,
        detail=f"output rows sum to 1 within {off:.1e}" if probabilities else "outputs are no probabilities",
        clears="give the model without its last softmax, or take the logarithm of its outputs" if probabilities else "",
    )


@torch.no_grad()
def randomised(target: TorchTarget, tried: Pilots, averaging: Averaging | None = None) -> ValidityFlag:
    """G1: five passes over the same images do not agree, and no gradient is averaged over enough of them."""
    with torch.random.fork_rng():
        passes = torch.stack([target.logits(tried.images).float() for _ in range(PASSES)])
    size = passes[0].norm(dim=1).clamp_min(1e-12)
    off = float(((passes - passes[0]).norm(dim=2) / size).max())
    random = not off <= SAME_OUTPUT  # NaN counts
    averaged = averaging.count if random and averaging and off < float("inf") else 0
    passed = not random or averaged >= LEAST_VIEWS
    detail = f"{PASSES} passes over {len(tried.labels)} images differ by at most {off:.1e} (normalised L2)"
    return ValidityFlag(
        id="G1 RANDOMISED",
        passed=passed,
        detail=detail + (f"; the white-box attacks averaged {averaged} passes per step" if averaged else ""),
        clears="" if passed else "attack the average of 20 passes by --views 20, or switch the randomness off",
    )


def zero_gradient(target: TorchTarget, tried: Pilots) -> ValidityFlag:
    """G2: the margin of the true class over the best other one has no usable gradient at some image."""
    norms = _gradient(target, tried).flatten(1).norm(dim=1)
    broken = int((~(norms.isfinite() & (norms > 0))).sum())
    return ValidityFlag(
        id="G2 ZERO_GRAD",
        passed=not broken,
        detail=f"the gradient is zero or not finite at {broken} of {len(norms)} images",
        clears=f"{MANDATORY}; or give the model without the layer that hides its gradient" if broken else "",
    )


def pixel_space_acceptance(target: TorchTarget, tried: Pilots) -> float:
    """Share of the attacked classes for which plain descent on the pixels finds a picture that the target accepts.

    No prior and no realism: it only shows whether the gradients lead anywhere.
    """
    classes = tried.labels.unique()
    noise = Streams.of(0, classes, torch.zeros_like(classes)).normal("pixel space", *tried.images.shape[1:])
    pixels = (0.5 + 0.1 * noise).clamp(0, 1).requires_grad_(True)
    optimiser = torch.optim.Adam([pixels], lr=PIXEL_RATE)
    for _ in range(PIXEL_STEPS):
        optimiser.zero_grad()
        cross_entropy(target.logits(pixels), classes).sum().backward()
        optimiser.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    found = quantise(pixels.detach()).float() / 255
    return float((target.labels(found) == classes).float().mean())


def not_converged(attacks: Sequence[AttackResult], reachable: float | None, black_box: bool | None) -> ValidityFlag:
    """G3: the target does not accept what the attack itself reconstructed.

    Cleared when the gradients demonstrably work (descent on the pixels convinces the target), the loss had settled in
    the second half of every attack in question, and no black-box attack did better: then it is the prior that cannot
    reach these people, not the optimiser that broke.

    Args:
        attacks: What ran.
        reachable: Acceptance of descent on the pixels; None when it was not tried.
        black_box: Whether a black-box attack did better than every white-box one; None when unknown.
    """
    shares = {one.name: one.measurement("target_acceptance") for one in attacks}
    values = {name: (found.value if found else None) for name, found in shares.items()}
    weak = [name for name, value in values.items() if value is None or value < CONVERGED]
    told = ", ".join(f"{name} {'unknown' if value is None else f'{value:.0%}'}" for name, value in values.items())
    detail = f"acceptance by the target: {told}" if told else "no attack ran"
    if not weak:
        return ValidityFlag(id="G3 NOT_CONVERGED", passed=bool(attacks) or None, detail=detail)
    moving = [one.name for one in attacks if one.name in weak and not settled(one)]
    if reachable is not None:
        detail += f"; descent on the pixels reaches {reachable:.0%}"
    detail += f"; still improving: {', '.join(moving)}" if moving else "; the losses had settled"
    cleared = reachable is not None and reachable >= CONVERGED and not moving and not black_box
    return ValidityFlag(
        id="G3 NOT_CONVERGED",
        passed=cleared,
        detail=detail + ("; so the optimiser works and the prior is what falls short" if cleared else ""),
        clears=""
        if cleared
        else "give the attack more steps until its loss settles or the target accepts 90 % of its pictures; "
        "a prior nearer to the private data helps",
    )


def settled(attack: AttackResult) -> bool:
    """Whether the loss of the last stage fell by a tenth, with no more than 5 % of the fall in its second half.

    A loss that never fell has not settled: it never started.
    """
    if not attack.curves or len(attack.curves[-1].losses) < 3:
        return False
    curve = attack.curves[-1]
    half = next(place for place, step in enumerate(curve.steps) if 2 * step >= curve.steps[0] + curve.steps[-1])
    start, middle, end = curve.losses[0], curve.losses[half], curve.losses[-1]
    return start - end >= FELL * abs(start) and middle - end <= SETTLED * (start - end)


def black_box_better(attacks: Sequence[AttackResult]) -> ValidityFlag:
    """G4: an attack that sees less exposes more, so the white-box attacks must have been hindered."""
    better = _black_box_better(attacks)
    best = {side: _best(attacks, side) for side in (True, False)}
    if better is None:
        ran = "no black-box attack ran" if best[True] is not None else "no white-box attack ran"
        return ValidityFlag(
            id="G4 BB_BEATS_WB", passed=None, detail=f"not run: {ran}", clears="run a white-box and a black-box attack"
        )
    return ValidityFlag(
        id="G4 BB_BEATS_WB",
        passed=not better,
        detail=f"the best white-box attack exposes {best[True]:.1%}, the best black-box attack {best[False]:.1%}",
        clears="find out what hinders the white-box attacks: gradients, steps or restarts" if better else "",
    )


def type1_gap(attacks: Sequence[AttackResult], verifier: VerifierFacts | None) -> ValidityFlag:
    """G5: the evaluator says yes and the verifier no for more than 20 points of the people, beyond what it overlooks.

    A verifier overlooks part of genuine photographs, too; a gap that this explains is neither a pass nor a failure.
    """
    gaps = {one.name: found.value for one in attacks if (found := one.measurement("type1_gap"))}
    known = {name: value for name, value in gaps.items() if value is not None}
    if not known or verifier is None:
        return ValidityFlag(
            id="G5 TYPE1_GAP", passed=None, detail="not run: there is no verifier", clears="give --verifier MODEL"
        )
    name, gap = max(known.items(), key=lambda pair: pair[1])
    overlooked = 1 - (verifier.sensitivity.value or 0.0)
    detail = (
        f"{name}: the evaluator accepts and the verifier refuses {gap:.0%} of the people's surest reconstructions; "
        f"the verifier also refuses {overlooked:.0%} of genuine photographs"
    )
    passed = True if gap <= TYPE1_GAP else False if gap - overlooked > TYPE1_GAP else None
    clears = {
        True: "",
        False: "the pictures convince classifiers without resembling anybody: attack a robustly trained surrogate",
        None: "the verifier is too weak to tell: give a better --verifier",
    }[passed]
    return ValidityFlag(id="G5 TYPE1_GAP", passed=passed, detail=detail, clears=clears)


def _gradient(target: TorchTarget, tried: Pilots) -> Tensor:
    images = tried.images.detach().clone().requires_grad_(True)
    logits = target.logits(images).float()
    if not logits.requires_grad:
        return torch.zeros_like(images)
    own = logits.gather(1, tried.labels[:, None]).squeeze(1)
    others = logits.scatter(1, tried.labels[:, None], -torch.inf).amax(dim=1)
    (gradient,) = torch.autograd.grad((own - others).sum(), images, allow_unused=True)
    return torch.zeros_like(images) if gradient is None else gradient


def _reachable(
    attacks: Sequence[AttackResult], models: Sequence[TorchTarget], tried: Pilots, gradients: bool | None
) -> float | None:
    """Acceptance of descent on the pixels, tried only where an attack fell short and there are gradients."""
    found = [one.measurement("target_acceptance") for one in attacks]
    if not gradients or all(one and one.value is not None and one.value >= CONVERGED for one in found):
        return None
    return min(pixel_space_acceptance(target, tried) for target in models)


def _black_box_better(attacks: Sequence[AttackResult]) -> bool | None:
    white, black = _best(attacks, True), _best(attacks, False)
    return None if white is None or black is None else black > white


def _best(attacks: Sequence[AttackResult], white_box: bool) -> float | None:
    return max(_successes([one for one in attacks if (one.access == "white-box") == white_box]), default=None)


def _successes(attacks: Sequence[AttackResult]) -> Iterator[float]:
    """Exposure of each attack; attack accuracy where exposure was not measured."""
    for one in attacks:
        found = [one.measurement(name) for name in ("exposure", "attack_acc1")]
        values = [each.value for each in found if each is not None and each.value is not None]
        if values:
            yield values[0]


def _worst(flags: Sequence[ValidityFlag]) -> ValidityFlag:
    return next((flag for flag in flags if flag.passed is False), flags[0])
