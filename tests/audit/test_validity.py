from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_audit.attacks.gmi import GMI
from mi_audit.attacks.lomma import LOMMA
from mi_audit.audit import registry, validity
from mi_audit.audit.adaptive import RUNS, no_adaptive, options_for
from mi_audit.audit.judge import model_facts
from mi_audit.audit.progress import Silent
from mi_audit.audit.scene import open_scene
from mi_audit.audit.settings import resolve
from mi_audit.audit.validity import Pilots
from mi_audit.core.quantity import Measurement, Quantity
from mi_audit.core.report import AttackResult, CurveFacts
from mi_audit.core.run import Averaging
from mi_audit.core.target import TorchTarget
from mi_audit.core.verdict import VerifierFacts
from mi_audit.store.targets import load_model
from tests.toy import classifier, dataset
from tests.world import digit_plan

TOY = dataset(per_class=2)


def tried() -> Pilots:
    return Pilots(TOY.images(), TOY.labels)


def target(*after: nn.Module) -> TorchTarget:
    net = classifier()
    return TorchTarget(nn.Sequential(net, *after), 4, net[1])


class Noise(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits):
        return logits * (1 + self.scale * torch.randn_like(logits))


class Rounded(nn.Module):
    def forward(self, logits):
        return logits.round()


class Cut(nn.Module):
    def forward(self, logits):
        return logits.detach()


class Infinite(nn.Module):
    def forward(self, logits):
        return (logits - logits).sqrt() + logits


def test_a_plain_network_passes_every_check_of_the_model():
    for check in (validity.non_logit, validity.randomised, validity.zero_gradient):
        flag = check(target(), tried())
        assert flag.passed and flag.clears == ""


def test_probabilities_are_recognised():
    flag = validity.non_logit(target(nn.Softmax(dim=1)), tried())
    assert flag.id == "G0 NONLOGIT" and flag.passed is False and "softmax" in flag.clears


@pytest.mark.parametrize(("scale", "passed"), [(0.0, True), (1e-6, True), (1e-2, False)])
def test_outputs_that_change_from_pass_to_pass_are_random(scale, passed):
    noisy, state = target(Noise(scale)), torch.get_rng_state()
    assert validity.randomised(noisy, tried()).passed is passed
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("views", "passed"), [(19, False), (20, True)])
def test_randomness_is_answered_by_gradients_averaged_over_twenty_passes(views, passed):
    flag = validity.randomised(target(Noise(0.01)), tried(), Averaging("paa", views))
    assert (
        flag.passed is passed and f"averaged {views} passes" in flag.detail and ("--views 20" in flag.clears) != passed
    )
    broken = validity.randomised(target(Noise(float("nan"))), tried(), Averaging("paa", 20))
    assert broken.passed is False
    assert "averaged" not in validity.randomised(target(), tried(), Averaging("paa", 20)).detail


@pytest.mark.parametrize("broken", [Rounded, Cut, Infinite])
def test_a_gradient_that_is_zero_cut_or_not_finite_is_found(broken):
    flag = validity.zero_gradient(target(broken()), tried())
    assert flag.id == "G2 ZERO_GRAD" and flag.passed is False and "8 of 8" in flag.detail


def test_one_image_without_gradient_is_enough():
    class Partly(nn.Module):
        def forward(self, logits):
            keep = (torch.arange(len(logits)) > 0).float()[:, None]
            return logits * keep + (1 - keep) * logits.round()

    assert "1 of 8" in validity.zero_gradient(target(Partly()), tried()).detail


def test_descent_on_the_pixels_convinces_a_plain_network_and_not_a_broken_one():
    assert validity.pixel_space_acceptance(target(), tried()) == 1.0
    assert validity.pixel_space_acceptance(target(Rounded()), tried()) < 0.9


def share(name: str, value: float | None) -> Measurement:
    return Measurement(
        name=name, protocol=name, value=value, unit="share", count=4, counted="identities", reason="-", leak_grows=True
    )


def attack(name: str = "gmi", access: str = "white-box", losses: tuple[float, ...] = (), **shares: float | None):
    curves = (CurveFacts(stage="main", steps=tuple(range(len(losses))), losses=losses),) if losses else ()
    return AttackResult(
        name=name, role="attack", access=access, prior="p", paper="", settings={}, seeds=(0,), queries={}, work={},
        measurements=tuple(share(key, value) for key, value in shares.items()), curves=curves,
    )  # fmt: skip


FLAT = (9.0, 2.0, 1.0, 1.0, 0.99)
FALLING = (9.0, 5.0, 2.0, 1.5, 1.0)


@pytest.mark.parametrize(
    ("acceptance", "losses", "reachable", "black_box", "passed"),
    [
        (0.90, FALLING, None, None, True),
        (0.89, FLAT, None, None, False),
        (0.89, FLAT, 0.9, None, True),
        (0.89, FLAT, 0.9, False, True),
        (0.89, FLAT, 0.9, True, False),
        (0.89, FLAT, 0.89, None, False),
        (0.89, FALLING, 1.0, None, False),
        (0.89, (), 1.0, None, False),
        (None, FLAT, None, None, False),
    ],
)
def test_an_attack_that_fell_short_is_cleared_only_when_its_optimiser_demonstrably_works(
    acceptance, losses, reachable, black_box, passed
):
    flag = validity.not_converged([attack(losses=losses, target_acceptance=acceptance)], reachable, black_box)
    assert flag.id == "G3 NOT_CONVERGED" and flag.passed is passed
    assert (flag.clears == "") is passed


def test_one_attack_that_fell_short_is_enough():
    both = [attack("gmi", target_acceptance=1.0), attack("ppa", target_acceptance=0.5)]
    flag = validity.not_converged(both, None, None)
    assert flag.passed is False and "gmi 100%, ppa 50%" in flag.detail
    assert validity.not_converged([], None, None).passed is None


@pytest.mark.parametrize(
    ("attacks", "passed"),
    [
        ([attack(exposure=0.5)], None),
        ([attack(access="label-only", exposure=0.5)], None),
        ([attack(exposure=0.5), attack(access="label-only", exposure=0.5)], True),
        ([attack(exposure=0.5), attack(access="score", exposure=0.6)], False),
        ([attack(exposure=0.2), attack(exposure=0.7), attack(access="score", exposure=0.6)], True),
        ([attack(exposure=None, attack_acc1=0.2), attack(access="score", exposure=None, attack_acc1=0.3)], False),
    ],
)
def test_a_black_box_attack_must_not_expose_more_than_every_white_box_attack(attacks, passed):
    flag = validity.black_box_better(attacks)
    assert flag.id == "G4 BB_BEATS_WB" and flag.passed is passed
    assert passed is not None or "not run" in flag.detail


def verifier(sensitivity: float) -> VerifierFacts:
    rate = Quantity(value=sensitivity, unit="share", count=9, counted="trials", reason="-")
    return VerifierFacts(
        ref="v", arch="a", sha256="0", threshold=0.5, far=rate, sensitivity=rate, trained_on="", weakness=""
    )


@pytest.mark.parametrize(
    ("gap", "sensitivity", "passed"),
    [(0.2, 0.9, True), (0.21, 1.0, False), (0.31, 0.9, False), (0.29, 0.9, None), (0.6, 0.5, None), (None, 0.9, None)],
)
def test_the_gap_between_the_judges_is_held_against_what_the_verifier_overlooks(gap, sensitivity, passed):
    flag = validity.type1_gap([attack(type1_gap=gap), attack("ppa", type1_gap=0.0)], verifier(sensitivity))
    if gap is None:
        flag = validity.type1_gap([attack(type1_gap=gap)], verifier(sensitivity))
    assert flag.id == "G5 TYPE1_GAP" and flag.passed is passed
    assert (flag.clears == "") == (passed is True)


def test_without_a_verifier_there_is_no_gap_to_judge():
    assert validity.type1_gap([attack(type1_gap=None)], None).passed is None


class Adaptive(GMI):
    adaptive_to = ("bido",)


@pytest.mark.parametrize(
    ("defense", "builds", "passed"),
    [
        ({}, {}, True),
        ({"method": "none"}, {"gmi": GMI()}, True),
        ({"method": "tldmi", "adaptive_attack": "average over views"}, {"gmi": GMI(), "x": Adaptive()}, False),
        ({"method": "bido"}, {"gmi": GMI(), "x": Adaptive()}, True),
        ({"method": "tldmi+bido", "adaptive_attack": "average over views"}, {"x": Adaptive()}, False),
        ({"method": "negls+bido"}, {"x": Adaptive(), "lomma": LOMMA()}, True),
    ],
)
def test_a_declared_defense_needs_an_attack_that_knows_it(defense, builds, passed):
    flag = no_adaptive([defense], builds)
    assert flag.id == "G6 NO_ADAPTIVE" and flag.passed is passed
    if not passed:
        assert "tldmi" in flag.detail and "average over views" in flag.clears


@pytest.mark.parametrize(
    ("method", "averaging", "passed"),
    [
        ("tldmi", Averaging("taa", 20), True),
        ("tldmi", Averaging("taa", 19), False),
        ("tldmi", Averaging("paa", 50), False),
        ("midre", Averaging("erase", 20), True),
        ("midre", Averaging("taa", 50), False),
        ("atat", Averaging("paa", 20), True),
        ("negls", Averaging("taa", 50), False),  # published to hold against it
    ],
)
def test_a_defense_that_view_averaging_undoes_is_answered_by_enough_of_the_right_views(method, averaging, passed):
    flag = no_adaptive([{"method": method}], {"gmi": GMI()}, averaging)
    assert flag.passed is passed and (f"averaging over {averaging.count} views" in flag.detail) is passed


@pytest.mark.parametrize("method", sorted(RUNS))
def test_the_options_that_are_named_for_a_defense_answer_it(method):
    flag = no_adaptive([{"method": method}], {"gmi": GMI()})
    assert flag.passed is False and f"`{options_for(method)}`" in flag.clears
    words = options_for(method).split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given.keys() <= {"--views", "--view-kind", "--attacks", "--set"}
    views = Averaging(given.get("--view-kind", "taa"), int(given["--views"])) if "--views" in given else None
    name = given.get("--attacks", "gmi")
    found = resolve(assignments=[given["--set"]] if "--set" in given else [], discover=False, environment={}).settings
    attack = registry.build("attack", registry.attacks()[name], name, found.attacks.get(name, {}))
    assert no_adaptive([{"method": method}], {name: attack}, views).passed is True


def test_combinations_name_the_options_of_all_their_parts():
    assert options_for("loft+ca") == options_for("calor") == "--attacks lomma --set attacks.lomma.loss=confidence"
    assert options_for("tldmi+loft") == "--views 20 and --attacks lomma"
    assert options_for("tldmi+bido") == "--views 20" and options_for("label-only") == ""
    assert no_adaptive([{"method": "loft+ca"}], {"lomma": LOMMA(loss="confidence")}).passed is True


HEAD = {"edit": "low-rank-head", "layer": "8", "rank": 3, "norm": "none"}


@pytest.mark.parametrize("defense", [{}, {"method": "none"}, {"method": None}, {"name": "loft"}])
def test_a_changed_architecture_needs_a_named_defense(defense):
    flag = no_adaptive([{"method": "bido"}, defense], {"x": Adaptive()}, None, [(), (HEAD,)])
    assert flag.passed is False
    assert flag.detail == "the architecture was changed by a defense that the manifest does not name"
    answers = no_adaptive([defense], {"x": Adaptive()}, None, [({"edit": "output", "rule": "label-only"},)])
    assert answers.passed is False and answers.detail.startswith("the answers are changed by")
    assert no_adaptive([{"method": "bido"}], {"x": Adaptive()}, None, [(HEAD,)]).passed is True
    assert no_adaptive([{}], {"x": Adaptive()}, None, [()]).passed is True


def test_an_unnamed_defense_of_the_model_under_audit_is_found(digits, cache, tmp_path):
    with open_scene(digit_plan(digits, tmp_path / "run", cache), "attack", Silent()) as scene:
        model = replace(scene.model, edits=({"edit": "output", "rule": "label-only"},))
        facts = model_facts(model, Quantity(value=1.0, unit="share", count=1, counted="images"))
        flags = validity.check(scene, {0: (model, facts)}, (0, 3), [], {"x": Adaptive()}, None)
    assert flags[-1].id == "G6 NO_ADAPTIVE" and flags[-1].passed is False


def test_a_loss_has_settled_when_it_fell_and_its_second_half_brings_little_of_it():
    assert not validity.settled(attack(losses=(9.0, 9.0, 9.0))) and not validity.settled(attack(losses=(9.0, 8.5, 8.2)))
    assert validity.settled(attack(losses=(9.0, 8.0, 8.0))) and not validity.settled(attack(losses=(2.0, 1.0, 0.94)))
    assert validity.settled(attack(losses=FLAT)) and not validity.settled(attack(losses=FALLING))
    later = replace(attack(losses=FALLING), curves=(attack(losses=FALLING).curves[0], attack(losses=FLAT).curves[0]))
    assert validity.settled(later)


def test_pilots_are_held_out_pictures_spread_over_the_attacked_classes(digits, cache, tmp_path):
    with open_scene(digit_plan(digits, tmp_path / "run", cache), "attack", Silent()) as scene:
        few, one = validity.pilots(scene, (0, 3, 4)), validity.pilots(scene, (2,))
        assert few.labels.bincount().tolist() == [7, 0, 0, 7, 6]
        assert one.labels.tolist() == [2] * 20
        test = scene.splits.test
        bare = replace(scene, splits=replace(scene.splits, test=test.select((test.labels != 2).nonzero().flatten())))
        assert validity.pilots(bare, (2,)).labels.tolist() == [2] * 20


def test_of_several_models_the_worst_counts(digits, cache, tmp_path):
    with open_scene(digit_plan(digits, tmp_path / "run", cache), "attack", Silent()) as scene:
        healthy = scene.model
        broken = load_model(str(digits), arch="py:tests.audit.test_decisions:rounded", num_classes=5, channels=1)
        facts = model_facts(healthy, Quantity(value=1.0, unit="share", count=1, counted="images", reason="-"))
        targets = {0: (healthy, facts), 1: (replace(broken, sha256="other"), facts)}
        flags = validity.check(scene, targets, (0, 1), [attack(target_acceptance=0.5)], {}, None)
    assert [flag.id.partition(" ")[0] for flag in flags] == ["G0", "G1", "G2", "G3", "G4", "G5", "G6"]
    assert [flag.passed for flag in flags] == [True, True, False, False, None, None, True]
    assert "descent" not in flags[3].detail  # there is no gradient to descend
