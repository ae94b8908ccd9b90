"""What every plug-in promises, checked on every one that the registry finds."""

import re
from dataclasses import fields
from functools import cache

import pytest
import torch
from torch import nn

from mi_audit.audit import registry
from mi_audit.core.run import Averaging, Run
from mi_audit.core.target import Access, TorchTarget, restricted
from tests.toy import classifier, prior_for, target

ATTACKS = registry.attacks()
WHITE_BOX = {name: attack for name, attack in ATTACKS.items() if attack.threat_model()[0].access == Access.WHITE_BOX}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def reconstruct(attack, toy=None, run=None, classes=(0, 1, 2, 3)):
    view = restricted(toy or target(), attack.threat_model()[0].access)
    return attack(**attack.smoke).run(view, prior_for(attack), torch.tensor(classes), run or Run())


@cache
def usual(attack):
    """What it finds in the toy world, whom it asked and what that took; one search serves several promises."""
    toy, run = target(), Run()
    return reconstruct(attack, toy, run), toy, run


@every_attack
def test_an_attack_states_its_source_cost_and_prior(attack):
    assert attack.paper.url.startswith("https://")
    assert attack.cost and isinstance(attack.deviations, tuple) and attack.version >= 1
    assert attack().recipes[0] == attack.prior
    assert set(attack().recipes) <= set(registry.priors())


@every_attack
def test_an_attack_documents_every_setting(attack):
    listed = re.search(r"Attributes:\n(.*?)(?:\n\n|\nRaises:|\Z)", attack.__doc__, re.DOTALL).group(1)
    documented = {
        name.strip() for names in re.findall(r"^\s+([\w, ]+):", listed, re.MULTILINE) for name in names.split(",")
    }
    assert {field.name for field in fields(attack)} <= documented


@every_attack
def test_an_attack_has_settings_for_every_profile(attack):
    for settings in ({}, attack.quick, attack.smoke):
        assert attack(**settings) == attack(**settings)
        assert attack(**settings).sample_steps >= 0


@every_attack
def test_an_attack_uses_no_more_access_than_it_declares(attack):
    _, toy, _ = usual(attack)
    assert toy.ledger.spent.total() > 0
    assert max(toy.ledger.spent) <= attack.threat_model()[0].access


@every_attack
def test_an_attack_counts_every_image_it_asks_about(attack):
    _, toy, run = usual(attack)
    assert run.work["generator_forward"] > 0
    assert run.work["target_forward"] == toy.ledger.spent.total()


@every_attack
def test_an_attack_repeats_itself_and_depends_on_the_seed(attack):
    first, second, other = usual(attack)[0], reconstruct(attack), reconstruct(attack, run=Run(seed=4))
    assert torch.equal(first.images, second.images) and torch.equal(first.confidence, second.confidence)
    assert first.curves == second.curves
    assert not torch.equal(first.images, other.images)


@every_attack
def test_an_attack_does_not_depend_on_the_batch_size(attack):
    large, _, run = usual(attack)
    small = reconstruct(attack, run=Run(batch_size=3))
    assert run.batch_size > len(large.labels) > 3
    torch.testing.assert_close(small.images, large.images, atol=1e-4, rtol=0)
    torch.testing.assert_close(small.confidence, large.confidence, atol=1e-4, rtol=0)


class Tight(nn.Module):
    """A network whose device has no memory left at the third pass, and then again."""

    def __init__(self, net):
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, images):
        self.passes += 1
        if self.passes == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.net(images)


@every_attack
def test_an_attack_that_runs_out_of_memory_finds_and_counts_the_same(attack):
    net = classifier()
    tight = TorchTarget(Tight(net), num_classes=4, head=net[1])
    pressed = Run(queries=tight.ledger.spent)
    found, (expected, toy, plain) = reconstruct(attack, tight, pressed), usual(attack)
    assert tight._model.passes > 3
    torch.testing.assert_close(found.images, expected.images, atol=1e-4, rtol=0)
    assert pressed.work == plain.work and tight.ledger.spent == toy.ledger.spent


@every_attack
def test_an_attack_may_be_cut_by_class(attack):
    whole, parts = usual(attack)[0], [reconstruct(attack, classes=pair) for pair in ((0, 1), (2, 3))]
    torch.testing.assert_close(whole.images, torch.cat([part.images for part in parts]), atol=1e-4, rtol=0)


@every_attack
def test_an_attack_leaves_the_world_as_it_was(attack):
    net = classifier()
    toy = TorchTarget(net, num_classes=4, head=net[1])
    weights, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    reconstruct(attack, toy)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None and not weight.requires_grad for weight in net.parameters())
    assert not any(module.training for module in net.modules())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in net.modules()
    )
    assert torch.is_grad_enabled()


@every_attack
def test_an_attack_returns_as_many_pictures_of_every_class_in_order(attack):
    found = reconstruct(attack, classes=(2, 0, 3))
    each = len(found.labels) // 3
    assert each >= 1 and found.labels.tolist() == [2] * each + [0] * each + [3] * each
    assert len(found.images) == len(found.confidence) == 3 * each
    assert found.images.shape[1:] == (3, 8, 8)
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert found.confidence.isfinite().all()
    assert not (found.images.requires_grad or found.confidence.requires_grad)


@every_attack
def test_an_attack_reports_a_loss_that_falls(attack):
    curves = usual(attack)[0].curves
    assert curves
    for curve in curves:
        tenth = max(1, len(curve.losses) // 10)
        assert sum(curve.losses[-tenth:]) < sum(curve.losses[:tenth])
        assert list(curve.steps) == sorted(set(curve.steps)) and len(curve.steps) == len(curve.losses) <= 100


@every_attack
def test_an_attack_recovers_the_quadrant_of_every_class(attack):
    found = usual(attack)[0]
    # The weights of a class are its quadrant, and all are as bright, so the label is that of the nearest quadrant.
    assert torch.equal(target().labels(found.images), found.labels)


@pytest.mark.parametrize("attack", WHITE_BOX.values(), ids=WHITE_BOX)
def test_a_white_box_attack_averages_its_gradients_when_asked_to(attack):
    toy, views = target(), Run(averaging=Averaging("taa", 3))
    (without, _, plain), averaged = usual(attack), reconstruct(attack, toy, views)
    assert views.work["target_backward"] == 3 * plain.work["target_backward"] > 0
    assert views.work["target_forward"] == toy.ledger.spent.total()
    assert views.work["generator_forward"] == plain.work["generator_forward"]
    assert without.curves[-1].losses != averaged.curves[-1].losses  # images may end in the same corner of a box


@pytest.mark.parametrize("attack", WHITE_BOX.values(), ids=WHITE_BOX)
def test_averaged_gradients_do_not_depend_on_the_batch_size(attack):
    found, passes = [], []
    for size in (3, 64):
        net, asked = classifier(), []
        net.register_forward_hook(lambda *_, asked=asked: asked.append(1))
        run = Run(batch_size=size, averaging=Averaging("paa", 3))
        found.append(reconstruct(attack, TorchTarget(net, num_classes=4, head=net[1]), run, (1, 3)).images)
        passes.append(len(asked))
    assert passes[0] > passes[1]
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)
