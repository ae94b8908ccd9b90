"""What every defense of an API's answers promises."""

import torch

from mi_audit.core.target import TorchTarget
from mi_audit.nn.output_defense import OutputDefense
from mi_audit.nn.output_rules import answer
from tests.toy import classifier, prototypes


def check_released(defense: OutputDefense, *, keeps_labels: bool = True) -> None:
    """The API answers by the rule, and whoever holds the weights does not notice it."""
    net = classifier()
    rule = answer(defense.edits(net, prototypes()))
    api, bare = TorchTarget(net, 4, net[1], answer=rule), TorchTarget(net, 4, net[1])
    images = prototypes() * torch.linspace(0.3, 1, 4)[:, None, None, None]
    assert torch.equal(api.scores(images), rule(bare.logits(images)))
    assert not torch.allclose(api.scores(images), bare.scores(images), atol=1e-4)
    assert torch.equal(api.logits(images), bare.logits(images))
    assert torch.equal(api.labels(images), api.scores(images).argmax(dim=1))
    assert torch.equal(api.labels(images), bare.labels(images)) or not keeps_labels
