import math

import pytest
import torch

from mi_audit.core.random import Streams
from mi_audit.nn.adversarial import Round
from mi_audit.nn.adversarial_targeted import ConditionalHinge, KPlusOne, entropy, realness
from mi_audit.nn.views import Chain

LOG2, LOG3 = math.log(2), math.log(3)


def images(*values):
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 2)


def round_of(made, *, more_real=(), labels=(0, 1), asked=(0, 1)):
    number = torch.arange(2)
    return Round(
        step=3, rows=torch.tensor([5, 7]), labels=torch.tensor(labels), real=images(10.5, 20.5),
        seen_real=images(10.0, 20.0), more_real=more_real, made=made, seen_made=made, asked=torch.tensor(asked),
        streams=Streams.of(0, number, number),
    )  # fmt: skip


def test_realness_and_entropy_by_hand():
    assert realness(torch.tensor([[LOG2, LOG3]])).item() == pytest.approx(math.log(5))
    probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    expected = [-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), LOG2]
    assert entropy(probabilities.log() + 3).tolist() == pytest.approx(expected)


# A critic by table: the value of an image chooses its features and its logits.
TABLE = {
    10.0: ((0.0, 0.0), (0.0, 0.0)), 20.0: ((0.0, 0.0), (LOG3, 0.0)),  # labelled: softmax (1/2, 1/2), (3/4, 1/4)
    30.0: ((0.0, 0.0), (0.0, LOG2)), 31.0: ((0.0, 0.0), (0.0, LOG2)),  # unlabelled: s = log 3
    40.0: ((1.0, 5.0), (9.0, 9.0)), 41.0: ((3.0, 5.0), (9.0, 9.0)),  # matched: mean features (2, 5)
    50.0: ((4.0, 4.0), (0.0, 0.0)), 51.0: ((6.0, 8.0), (0.0, 0.0)),  # generated: mean (5, 6), s = log 2, entropy log 2
}  # fmt: skip


def by_table(batch):
    rows = [TABLE[value] for value in batch[:, 0, 0, 0].tolist()]
    return torch.tensor([features for features, _ in rows]), torch.tensor([logits for _, logits in rows])


def k_plus_one(**settings):
    asked = []

    def soft_labels(shown, rows):
        asked.append((shown[:, 0, 0, 0].tolist(), rows.tolist()))
        return torch.tensor([[1.0, 0.0], [0.5, 0.5]])

    return KPlusOne(soft_labels=soft_labels, fingerprint="f", **settings), asked


def test_the_critic_of_k_plus_one_classes_by_hand():
    objective, asked = k_plus_one()
    more = (images(30.0, 31.0), images(40.0, 41.0))
    loss = objective.critic_objective(by_table, round_of(images(50.0, 51.0), more_real=more))
    taught = (LOG2 - 0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4)) / 2
    # p(real) = Z / (Z + 1): 3/4 for the public images, 2/3 for the generated ones
    told = (-math.log(3 / 4) - math.log(1 - 2 / 3)) / 2
    assert loss.item() == pytest.approx(taught + told)
    assert asked == [([10.5, 20.5], [5, 7])]  # as they are, not as the critic sees them


def test_the_generator_matches_features_and_is_sure_by_hand():
    objective, asked = k_plus_one(entropy_weight=0.5)
    more = (images(30.0, 31.0), images(40.0, 41.0))
    loss = objective.generator_objective(by_table, round_of(images(50.0, 51.0), more_real=more))
    assert loss.item() == pytest.approx((abs(5 - 2) + abs(6 - 5)) / 2 + 0.5 * LOG2)
    assert asked == []
    objective, _ = k_plus_one(entropy_weight=0.0, adversarial_weight=2.0)
    loss = objective.generator_objective(by_table, round_of(images(50.0, 51.0), more_real=more))
    assert loss.item() == pytest.approx(2.0 + 2 * -math.log(2 / 3))


def hinge(view, **settings):
    def logits(shown):
        value = shown[:, 0, 0, 0]
        return torch.stack([value, 2 * value, -value], dim=1)

    return ConditionalHinge(logits=logits, fingerprint="f", view=view, **settings)


def by_label(batch, labels):
    """The first pixel, and ten times the label."""
    return batch[:, 0, 0, 0] + 10 * labels


def test_the_hinge_losses_by_hand():
    real, fake = torch.tensor([0.5, 3.0]), torch.tensor([-2.0, 0.25])
    objective = hinge(Chain(()))
    assert objective.critic_loss(real, fake).item() == pytest.approx((0.5 + 0) / 2 + (0 + 1.25) / 2)
    assert objective.generator_loss(fake).item() == pytest.approx(1.75 / 2)


def test_the_critic_is_told_the_labels_of_both_kinds():
    # real 10 + 0 and 20 + 10, above one; generated -10.5 + 10 asked for 1, and 1 + 0 asked for 0: 0.5 and 2
    loss = hinge(Chain(())).critic_objective(by_label, round_of(images(-10.5, 1.0), asked=(1, 0)))
    assert loss.item() == pytest.approx((0.5 + 2) / 2)


def test_the_generator_is_held_to_the_margin_of_a_view():
    def shifted(batch, streams, step):
        assert len(streams) == 2 and step == 0
        return batch + 1

    # Values 2 and 4, seen by the target as 3 and 5: logits (3, 6, -3) and (5, 10, -5), margins 6 - 3 and 5 - 10.
    loss = hinge(shifted, margin_weight=0.5).generator_objective(by_label, round_of(images(2.0, 4.0), asked=(0, 1)))
    assert loss.item() == pytest.approx(-(2 + 14) / 2 + 0.5 * (3 - 5) / 2)
