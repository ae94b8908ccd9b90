"""What every defense promises, checked on every defense the registry finds."""

import json

import pytest
import torch

from mi_audit.audit import registry
from mi_audit.core.defense import Defense
from tests.nn.test_anatomy import plain_cnn
from tests.toy import dataset

KINDS = {"information", "data", "gradient-masking", "deception", "output-side"}

every_defense = pytest.mark.parametrize("defense", registry.defenses().values(), ids=lambda defense: defense.__name__)


def prepared(defense):
    torch.manual_seed(0)
    method = defense(**defense.smoke)
    return method, *method.prepare(plain_cnn(), dataset().images(slice(0, 2)))


@every_defense
def test_cites_a_paper_and_says_how_it_works(defense):
    assert defense.paper.url.startswith("https://")
    assert defense.kind in KINDS
    assert defense.adaptive
    assert isinstance(defense.needs_public_init, bool)
    assert defense.__doc__ and defense.__doc__ != Defense.__doc__


@every_defense
def test_the_loss_is_a_finite_number_whose_gradient_reaches_the_weights(defense):
    method, net, _ = prepared(defense)
    data = dataset()
    loss = method.loss(net.train(), data.images(), data.labels)
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite()
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    assert trainable
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trainable)
    assert any(parameter.grad.abs().sum() > 0 for parameter in trainable)


@every_defense
def test_the_logits_keep_their_shape(defense):
    method, net, _ = prepared(defense)
    images = dataset().images(slice(0, 5))
    assert net.eval()(images).shape == (5, 4)
    assert method.finish(net).eval()(images).shape == (5, 4)


@every_defense
def test_leaves_no_hook_behind(defense):
    method, net, _ = prepared(defense)
    data = dataset()
    method.loss(net, data.images(), data.labels)
    parts = list(method.finish(net).modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in parts)


@every_defense
def test_what_it_did_fits_a_manifest(defense):
    _, _, facts = prepared(defense)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


@every_defense
def test_is_frozen_and_known_by_its_settings(defense):
    assert defense(**defense.smoke) == defense(**defense.smoke)
    with pytest.raises(AttributeError):
        defense(**defense.smoke).paper = None
