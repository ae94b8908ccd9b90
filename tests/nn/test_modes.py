import pytest

from mi_audit.nn.modes import evaluating, keeping_modes
from tests.nn.test_anatomy import plain_cnn


def modes(*nets):
    return [module.training for net in nets for module in net.modules()]


def test_every_module_gets_its_own_mode_back_even_after_an_error():
    net, other = plain_cnn().train(), plain_cnn().eval()
    net[1].eval()
    before = modes(net, other)
    with pytest.raises(KeyError), evaluating(net, other):
        assert not any(modes(net))
        raise KeyError
    assert modes(net, other) == before
    assert net.training and not net[1].training and not other.training


def test_any_mode_may_be_tried_in_between():
    net = plain_cnn().train()
    net[1].eval()
    before = modes(net)
    with keeping_modes(net):
        assert modes(net) == before
        net.train()
    assert modes(net) == before
