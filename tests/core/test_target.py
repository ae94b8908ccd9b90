import pytest
import torch
from torch import nn

from mi_audit.core.errors import QueryBudgetExceeded
from mi_audit.core.target import Access, LabelOnlyView, QueryLedger, ScoreView, TorchTarget, restricted
from tests.toy import classifier, prototypes, target


def test_names_each_quadrant():
    assert target().labels(prototypes()).tolist() == [0, 1, 2, 3]


def test_counts_images_by_access():
    toy = target()
    toy.labels(prototypes())
    toy.scores(prototypes()[:3])
    toy.logits(prototypes()[:2])
    toy.features(prototypes()[:1])
    assert toy.ledger.spent == {Access.LABEL_ONLY: 4, Access.SCORE: 3, Access.WHITE_BOX: 3}


def test_a_query_over_budget_is_not_answered_and_not_charged():
    net = classifier()
    toy = TorchTarget(net, num_classes=4, head=net[1], ledger=QueryLedger(budget=5))
    toy.labels(prototypes())
    with pytest.raises(QueryBudgetExceeded, match="expected at most 5 queries, got 8; raise --max-queries"):
        toy.scores(prototypes())
    assert toy.ledger.spent.total() == 4
    toy.scores(prototypes()[:1])


def test_scores_are_the_softmax_of_the_logits():
    toy = target()
    logits = toy.logits(prototypes())  # a bright quadrant has 48 values of one, each weighing a twelfth
    assert logits[0].tolist() == pytest.approx([4, 0, 0, 0])
    torch.testing.assert_close(toy.scores(prototypes()), logits.softmax(dim=1))


def test_features_are_what_the_head_sees_and_leave_no_hook():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 4))
    toy = TorchTarget(net, num_classes=4, head=net[3])
    images = prototypes().requires_grad_()
    features = toy.features(images)
    torch.testing.assert_close(features, net[:3](images))
    assert torch.autograd.grad(features.sum(), images)[0].shape == images.shape
    assert not net[3]._forward_pre_hooks


def test_the_network_is_frozen_and_in_eval_mode():
    net = classifier().train()
    TorchTarget(net, num_classes=4, head=net[1])
    assert not any(module.training for module in net.modules())
    assert not any(weight.requires_grad for weight in net.parameters())


@pytest.mark.parametrize(
    ("access", "view", "hidden"),
    [
        (Access.LABEL_ONLY, LabelOnlyView, ("scores", "logits", "features")),
        (Access.SCORE, ScoreView, ("logits", "features")),
    ],
)
def test_a_view_has_no_method_beyond_its_access(access, view, hidden):
    toy = target()
    seen = restricted(toy, access)
    assert type(seen) is view and seen.access == access
    assert not any(hasattr(seen, name) for name in hidden)
    assert seen.labels(prototypes()).tolist() == [0, 1, 2, 3]
    assert toy.ledger.spent.total() == 4


def test_white_box_access_is_the_target_itself():
    toy = target()
    assert restricted(toy, Access.WHITE_BOX) is toy


def test_access_prints_as_users_write_it():
    assert [str(access) for access in Access] == ["label-only", "score", "white-box"]


def test_logits_and_features_come_from_one_pass_and_are_counted_once():
    toy = target()
    logits, features = toy.logits_and_features(prototypes())
    assert toy.ledger.spent == {Access.WHITE_BOX: 4}
    torch.testing.assert_close(logits, toy.logits(prototypes()))
    torch.testing.assert_close(features, toy.features(prototypes()))


def test_normalisations_come_in_order_with_what_they_learned_and_leave_no_hook():
    norms = [torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3, track_running_stats=False), torch.nn.BatchNorm2d(3)]
    norms[0].running_mean.fill_(0.5)
    head = torch.nn.Linear(192, 4)
    net = torch.nn.Sequential(*norms, torch.nn.Flatten(), head)
    toy = TorchTarget(net, 4, head)
    images = prototypes().requires_grad_()
    logits, (first, last) = toy.logits_and_normalisations(images)
    assert toy.ledger.spent == {Access.WHITE_BOX: 4}
    torch.testing.assert_close(logits, toy.logits(prototypes()))
    assert torch.equal(first.inputs, images) and first.mean.tolist() == [0.5] * 3 and last.mean.tolist() == [0] * 3
    assert last.inputs.requires_grad and not any(layer._forward_pre_hooks for layer in net.modules())
    assert target().logits_and_normalisations(prototypes())[1] == ()


def test_an_api_answers_by_its_rule_and_who_holds_the_weights_sees_past_it():
    net = classifier()
    bare = TorchTarget(net, num_classes=4, head=net[1])
    tied = TorchTarget(net, num_classes=4, head=net[1], answer=lambda logits: torch.ones_like(logits))
    lying = TorchTarget(net, num_classes=4, head=net[1], answer=lambda logits: (-logits).softmax(dim=1))
    images = prototypes()[1:] + 0.01 * prototypes()[:1]
    assert tied.scores(images).tolist() == [[1.0] * 4] * 3
    assert tied.labels(images).tolist() == [1, 2, 3]  # between equal scores the logits decide
    assert torch.equal(lying.labels(images), bare.logits(images).argmin(dim=1))
    assert torch.equal(tied.logits(images), bare.logits(images))
    assert torch.equal(tied.features(images), bare.features(images))
    assert torch.equal(tied.network()(images), net(images))
    assert tied.ledger.spent == {Access.SCORE: 3, Access.LABEL_ONLY: 3, Access.WHITE_BOX: 6}


def test_gradients_go_through_the_hastened_copy_and_answers_come_from_the_network():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    made = []

    def hasten(model):
        made.append(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)).requires_grad_(False))
        return made[-1]

    toy, images = TorchTarget(net, num_classes=4, head=net[1], hasten=hasten), torch.rand(2, 1, 2, 2)
    assert torch.equal(toy.scores(images), net(images).softmax(dim=1))
    assert torch.equal(toy.labels(images), net(images).argmax(dim=1))
    assert torch.equal(toy.network()(images), net(images)) and not made  # nobody needed a copy so far

    logits, features = toy.logits_and_features(images)
    assert torch.equal(toy.logits(images), logits) and torch.equal(logits, made[0](images))
    assert torch.equal(features, images.flatten(1)) and len(made) == 1
    assert toy.ledger.spent.total() == 8
