import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_audit.attacks.lomma import LOMMA, feature_distance, logit_loss
from mi_audit.core.errors import ConfigError
from mi_audit.core.prior import AssistedPrior
from mi_audit.core.run import Averaging, Run
from mi_audit.core.target import Access
from tests.toy import ToyPrior, classifier, prototypes, surrogates, target, watched


def attack(run=None, known=None, toy=None, classes=(0, 1, 2, 3), prior=None, **settings):
    knowledge = AssistedPrior(prior or ToyPrior(), known or surrogates())
    return LOMMA(**LOMMA.smoke | settings).run(toy or target(), knowledge, torch.tensor(classes), run or Run())


def scaled(factor):
    net = classifier()
    net[1].weight.data.mul_(factor)
    return net


def test_the_logit_loss_is_the_negative_logit_of_the_class_and_nothing_else():
    logits = torch.tensor([[2.0, -1.0, 5.0], [0.5, 7.0, -3.0]], requires_grad=True)
    loss = logit_loss(logits, torch.tensor([2, 0]))
    assert loss.tolist() == [-5.0, -0.5]
    loss.sum().backward()
    assert logits.grad.tolist() == [[0, 0, -1], [-1, 0, 0]]  # no other class takes part, unlike in cross-entropy


def test_the_feature_distance_by_hand_and_zero_at_the_centre():
    features = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    centres = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    assert feature_distance(features, centres).tolist() == [0.0, (4 + 1) / 2]


@pytest.mark.parametrize("on", ["gmi", "kedmi"])
@pytest.mark.parametrize("loss", ["logit", "cross-entropy"])
def test_recovers_the_quadrant_of_every_class(on, loss):
    found = attack(on=on, loss=loss, steps=100)
    nearest = torch.cdist(found.images.flatten(1), prototypes().flatten(1)).argmin(1)
    assert torch.equal(nearest, found.labels)


def one_step(**settings):
    """Where one step with step size 1 and no momentum goes, minus where it began: the negative gradient."""
    start, end = watched(
        attack, classes=(0,), restarts=1, steps=1, lr=1.0, momentum=0.0, clip=99.0, reference_batch=1,
        identity_weight=1.0, critic_weight=0.0, **settings,
    )  # fmt: skip
    return start, start - end


def test_one_step_by_hand():
    # Logits are 4 s with s = sigmoid(z) for the target and 2 s for the half-sure student: their mean is 3 s, and its
    # negative has the slope -3 at the class. Features are 192 pixels; each of the 48 of a quadrant is s, its centre
    # 1/4, so the mean square is (1/192) 48 (s - 1/4)^2 summed over quadrants: slope (1/2) (s - 1/4).
    start, gradient = one_step(feature_weight=8.0)
    s = start.sigmoid()
    expected = (torch.tensor([-3.0, 0, 0, 0]) + 8 * 0.5 * (s - 0.25)) * s * (1 - s)
    torch.testing.assert_close(gradient, expected)


def test_one_step_of_cross_entropy_by_hand():
    start, gradient = one_step(loss="cross-entropy", feature_weight=8.0)
    s, label = start.sigmoid(), torch.tensor([1.0, 0, 0, 0])
    expected = (4 * ((4 * s).softmax(dim=1) - label) + 2 * ((2 * s).softmax(dim=1) - label)) / 2 * s * (1 - s)
    torch.testing.assert_close(gradient, expected)


def test_aims_at_a_confidence_from_either_side():
    # Softmax of 4 s: with s near 1/2 the class has e^2 against three times e^2, so p is near 1/4 for both networks.
    start, gradient = one_step(loss="confidence", confidence=0.9)
    _, unsure = one_step(loss="confidence", confidence=0.01)
    s, label = start.sigmoid(), torch.tensor([1.0, 0, 0, 0])
    expected = (4 * ((4 * s).softmax(dim=1) - label) + 2 * ((2 * s).softmax(dim=1) - label)) / 2 * s * (1 - s)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(unsure, -expected)


def test_students_alone_are_searched_without_the_slope_of_the_target():
    known = surrogates(scaled(0.5), scaled(1.75))  # slopes of 2 and 7; that of the target is 4
    start, gradient = one_step(known=known, feature_weight=0.0, students_only=True)
    expected = torch.tensor([-4.5, 0, 0, 0]) * start.sigmoid() * (1 - start.sigmoid())
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(ConfigError, match="students"):
        LOMMA(students_only=True, augment=False)
    with pytest.raises(ConfigError, match="confidence"):
        LOMMA(confidence=1.0)


def test_every_network_weighs_the_same_and_without_augmentation_only_the_target_counts():
    students = {"known": surrogates(scaled(0.5), scaled(1.75)), "feature_weight": 0.0}
    for settings, slope in (({}, -(4 + 2 + 7) / 3), ({"augment": False}, -4)):
        start, gradient = one_step(**students, **settings)
        expected = torch.tensor([slope, 0, 0, 0]) * start.sigmoid() * (1 - start.sigmoid())
        torch.testing.assert_close(gradient, expected)


def test_a_drawn_centre_belongs_to_the_class_and_has_the_spread_of_public_features():
    known = replace(surrogates(), feature_mean=torch.full((192,), 0.5), feature_std=torch.full((192,), 2.0))
    run, drawn = Run(), LOMMA(feature_draw=True)
    centres = drawn._centres(4, known, run, torch.device("cpu"))
    assert centres.shape == (4, 192) and not torch.equal(centres[0], centres[1])
    assert centres.mean().item() == pytest.approx(0.5, abs=0.25) and centres.std().item() == pytest.approx(2, abs=0.2)
    assert torch.equal(centres, drawn._centres(4, known, run, torch.device("cpu")))
    assert torch.equal(LOMMA()._centres(4, known, run, torch.device("cpu")), torch.full((4, 192), 0.5))


def test_on_kedmi_one_gaussian_serves_all_pictures_of_a_class():
    decoded = watched(attack, on="kedmi", steps=3, restarts=4, classes=(0, 1), clip=0.7)
    assert [len(latents) for latents in decoded] == [2, 2, 2, 8]
    assert all(latents.abs().max() <= 0.7 for latents in decoded)
    assert len(decoded[-1].unique(dim=0)) == 8


def test_on_kedmi_the_gaussian_starts_with_a_log_variance_of_one():
    start, *_ = watched(attack, on="kedmi", steps=1, restarts=1, clip=99.0)
    noise = Run().streams(torch.arange(4), torch.zeros(4, dtype=torch.int64)).normal("gaussian", 4)
    torch.testing.assert_close(start, math.exp(0.5) * noise)


def test_on_kedmi_the_gaussian_narrows():
    wide, narrow = (watched(attack, on="kedmi", steps=steps, restarts=40, clip=99.0, lr=0.1)[-1] for steps in (1, 300))
    assert narrow.view(4, 40, 4).std(dim=1).mean() < 0.8 * wide.view(4, 40, 4).std(dim=1).mean()


def test_asks_the_target_once_per_step_for_logits_and_features():
    toy, run = target(), Run()
    attack(run, toy=toy, known=surrogates(classifier(), classifier()))
    assert toy.ledger.spent == {Access.WHITE_BOX: 8 * 30, Access.SCORE: 8}
    assert run.work == {
        "generator_forward": 8 * 31, "generator_backward": 8 * 30, "critic_forward": 8 * 30,
        "critic_backward": 8 * 30, "target_forward": 8 * 31, "target_backward": 8 * 30,
        "student_forward": 2 * 8 * 30, "student_backward": 2 * 8 * 30,
    }  # fmt: skip


def test_students_see_every_view_and_the_work_says_so():
    calls = []

    class Counted(nn.Module):
        def forward(self, images):
            calls.append(len(images))
            return classifier()(images)

    run = Run(averaging=Averaging("taa", 3))
    attack(run, known=surrogates(Counted(), Counted()))
    assert run.work["student_forward"] == run.work["student_backward"] == sum(calls) == 3 * 2 * 8 * 30


@pytest.mark.parametrize("on", ["gmi", "kedmi"])
def test_does_not_depend_on_the_batch_size_and_counts_its_steps(on):
    small, large = (attack(Run(batch_size=size), on=on, feature_draw=True) for size in (3, 64))
    torch.testing.assert_close(small.images, large.images, atol=1e-4, rtol=0)
    run = Run()
    attack(run, on=on)
    assert run.work["target_backward"] == 4 * LOMMA(**LOMMA.smoke, on=on).sample_steps


def test_students_take_no_gradient():
    net = scaled(1.0).train()
    attack(known=replace(surrogates(), networks=(net,)))
    weights = list(net.parameters())
    assert all(weight.requires_grad for weight in weights) and len(weights) == 2
    assert all(weight.grad is None for weight in weights)
    assert all(torch.equal(*both) for both in zip(weights, scaled(1.0).parameters(), strict=True))


def test_each_search_has_the_prior_it_was_published_with():
    assert LOMMA().recipes == ("gmi-gan", "lomma-students")
    assert LOMMA(on="kedmi").recipes == ("kedmi-gan", "lomma-students")


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": 0.0}, {"clip": -1.0}, {"feature_weight": -1.0}])
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"expected .*{next(iter(wrong))}|weights"):
        LOMMA(**wrong)


def test_ships_the_published_settings():
    published = LOMMA()
    assert (published.steps, published.restarts, published.reference_batch) == (2400, 5, 60)
    assert (published.lr, published.momentum, published.clip) == (0.02, 0.9, 1.0)
    assert (published.identity_weight, published.feature_weight, published.critic_weight) == (100, 1, 1)
    assert (published.loss, published.augment, published.feature_draw) == ("logit", True, False)


def test_logits_and_students_get_around_defenses_that_spoil_gradients():
    assert LOMMA().adaptive_to == ("loft", "rolss", "ssf", "tts", "negls")
    assert LOMMA(loss="confidence").adaptive_to == ("loft", "rolss", "ssf", "tts", "ca")
    assert LOMMA(students_only=True).adaptive_to[-1] == "trap-mid"
    assert LOMMA(augment=False).adaptive_to == LOMMA(loss="cross-entropy").adaptive_to == ()
